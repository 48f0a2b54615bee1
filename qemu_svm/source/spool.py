"""Random access to bytes that can be read only once, in order.

A pipe or a decompressor is copied, as far as it is read, into an unnamed temporary
file: memory stays bounded, and the file disappears however the process ends.  It is
in ``TMPDIR``, by default in ``/var/tmp``, because ``/tmp`` may itself be in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from qemu_svm.errors import SourceError
from qemu_svm.limits import MIB
from qemu_svm.source.base import BackingFile, Source

_IN_MEMORY = 4 * MIB
_STEP = MIB


def spool_directory() -> str | None:
    """Return the directory for temporary copies of input, for :mod:`tempfile`."""
    if os.environ.get("TMPDIR"):
        return None  # tempfile looks there first
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else None


class SpoolSource(Source):
    """Bytes of a ``read(n)`` function with random access.

    :param read: returns at most n bytes, ``b""`` at the end.  If it raises
        :class:`SourceError`, the bytes before stay readable and the error is kept
        as :attr:`damage`.
    :param close: called once when the source is closed.
    :param limit: most bytes of the copy.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        path: str,
        *,
        compression: str = "none",
        limit: int,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.compression = compression
        self._read = read
        self._close = close
        self._limit = limit
        self._filled = 0
        self._ended = False
        import tempfile  # imports much that plain files do not need

        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 - closed by close()
            max_size=_IN_MEMORY, dir=spool_directory()
        )

    def _fill(self, until: int) -> None:
        while not self._ended and self._filled < until:
            try:
                chunk = self._read(_STEP)
            except SourceError as error:
                self.damage = error
                chunk = b""
            if not chunk:
                self._ended = True
                return
            if self._filled + len(chunk) > self._limit:
                self.damage = SourceError(
                    f"'{self.path}' holds more than {self._limit} bytes of data",
                    hint="raise it with --limit spool_bytes=SIZE, or decompress to a file first",
                )
                self._ended = True
                return
            self._file.seek(self._filled)
            try:
                self._file.write(chunk)
                self._file.flush()
            except OSError as error:
                raise SourceError(
                    f"no space for a temporary copy of '{self.path}': {error.strerror}",
                    hint="set TMPDIR to a directory with more free space, "
                    "or decompress to a file first",
                ) from error
            self._filled += len(chunk)

    def read_at(self, offset: int, size: int) -> bytes:
        self._fill(offset + size)
        if offset >= self._filled:
            return b""
        if self._filled > _IN_MEMORY:  # on disk: another process may share the file's position
            return os.pread(self._file.fileno(), min(size, self._filled - offset), offset)
        self._file.seek(offset)
        return self._file.read(size)

    def size(self) -> int:
        while not self._ended:
            self._fill(self._filled + _STEP)
        return self._filled

    def backing_file(self) -> BackingFile | None:
        if not self._ended or self._filled <= _IN_MEMORY:
            return None
        self._file.flush()
        return BackingFile(self._file.fileno(), 0)

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            self._close()
