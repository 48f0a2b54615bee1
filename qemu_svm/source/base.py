"""What every input looks like to the rest of the package.

A source is random access to the bytes of one stream.  It never parses them.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from qemu_svm.errors import SourceError

if TYPE_CHECKING:
    from qemu_svm.source.details import Details


class Source(Protocol):
    """Random access to the (decompressed) bytes of a stream.

    ``path`` is the name the user gave.  ``compression`` is the innermost of
    ``none``, ``gzip``, ``xz``, ``bzip2``, ``zstd``, ``lzop``; ``layers`` names
    every wrapping, outermost first.  ``container`` is ``plain``, ``libvirt`` or
    ``qcow2``, ``details`` what it tells.

    ``stream_offset`` is where the stream starts in its container (for qcow2 0:
    the stream is scattered).

    ``damage`` is the error that ended a decompression or an image early, once
    that has been met.
    """

    path: str
    compression: str
    container: str
    layers: tuple[str, ...]
    stream_offset: int
    details: Details | None
    damage: SourceError | None

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``; fewer only at the end."""
        ...

    def size(self) -> int:
        """Return the number of bytes (reads a pipe or an archive to its end)."""
        ...

    def file(self) -> tuple[int, int] | None:
        """Return where all bytes lie as they are: a descriptor, and offset 0's place in it.

        None if there is no such file.
        """
        ...

    def close(self) -> None:
        """Let go of files."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class SourceBase:
    """What sources have in common: a plain stream at offset 0, and ``with``."""

    path: str
    compression: str = "none"
    container: str = "plain"
    layers: tuple[str, ...] = ()
    stream_offset: int = 0
    details: Details | None = None
    damage: SourceError | None = None

    def read_at(self, offset: int, size: int) -> bytes:
        raise NotImplementedError

    def size(self) -> int:
        raise NotImplementedError

    def file(self) -> tuple[int, int] | None:
        return None

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
