"""What every input looks like to the rest of the package.

A source is random access to the bytes of one stream.  It never parses them.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from qemu_svm.errors import SourceError


class Source(Protocol):
    """Random access to the (decompressed) bytes of a stream.

    ``path`` is the name the user gave; ``compression`` one of ``none``,
    ``gzip``, ``xz``, ``bzip2``, ``zstd``; ``damage`` the error that ended a
    decompression early, once that has been met.
    """

    path: str
    compression: str
    damage: SourceError | None

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``; fewer only at the end."""
        ...

    def size(self) -> int:
        """Return the number of bytes (reads a pipe or an archive to its end)."""
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


class ClosingMixin:
    """``with`` for sources."""

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
