"""The interface of every input: random access to the bytes of one stream.

A source never parses what it holds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from qemu_svm.errors import SourceError

if TYPE_CHECKING:
    from qemu_svm.source.details import Details


class BackingFile(NamedTuple):
    """An open file that holds all bytes of a source, uncompressed and in order.

    :param descriptor: owned by the source; valid until it is closed.
    :param start: offset in the file of the source's offset 0.
    """

    descriptor: int
    start: int


class Source(ABC):
    """Random access to the (decompressed) bytes of a stream; a context manager.

    Whoever opens a source closes it.

    :ivar path: the name the user gave.
    :ivar compression: the innermost of ``none``, ``gzip``, ``xz``, ``bzip2``,
        ``zstd``, ``lzop``.
    :ivar container: ``plain``, ``libvirt``, ``qcow2`` or ``xen``.
    :ivar layers: every compression and container, outermost first.
    :ivar stream_offset: where the stream starts in its container (0 for qcow2,
        where the stream is scattered).
    :ivar details: the metadata in the container; None for plain files.
    :ivar damage: the error that ended a decompression or an image early, once
        reading has met it.
    """

    path: str
    compression: str = "none"
    container: str = "plain"
    layers: tuple[str, ...] = ()
    stream_offset: int = 0
    details: Details | None = None
    damage: SourceError | None = None

    @abstractmethod
    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``; fewer only at the end."""

    @abstractmethod
    def size(self) -> int:
        """Return the number of bytes (reads a pipe or an archive to its end)."""

    @abstractmethod
    def close(self) -> None:
        """Close the underlying files."""

    def backing_file(self) -> BackingFile | None:
        """Return the file that the bytes can be read from directly, if there is one."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
