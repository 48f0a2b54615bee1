"""A regular file or block device, or bytes in memory.

A file is read with ``pread``: it is not mapped (a file that shrinks meanwhile causes
a short read, not SIGBUS), and only the requested bytes are copied.
"""

from __future__ import annotations

import os
from contextlib import suppress

from qemu_svm.errors import SourceError
from qemu_svm.source.base import BackingFile, Source

MOST_OFFSET = (1 << 62) - 1
"""Largest offset of a file; the system rejects larger ones."""
_LARGE = 1 << 20


class FileSource(Source):
    """A regular file or block device, uncompressed.  Owns ``fd``."""

    def __init__(self, fd: int, path: str) -> None:
        self.path = path
        self._fd = fd
        self._size = 0

    def read_at(self, offset: int, size: int) -> bytes:
        if offset > MOST_OFFSET:  # a stream may name any 64-bit number
            return b""
        if size > _LARGE:  # memory by what is there, not by what is asked for
            size = min(size, max(0, self.size() - offset))
        chunks = []
        while size > 0:
            # One pread returns at most about 2 GiB; callers request far less.
            try:
                chunk = os.pread(self._fd, size, offset)
            except OSError as error:
                raise SourceError(f"cannot read '{self.path}': {error.strerror}") from error
            if not chunk:
                break
            chunks.append(chunk)
            offset += len(chunk)
            size -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def size(self) -> int:
        if self._fd >= 0:
            self._size = os.lseek(self._fd, 0, os.SEEK_END)
        return self._size  # that of a closed file as it was

    def backing_file(self) -> BackingFile | None:
        return BackingFile(self._fd, 0)

    def close(self) -> None:
        if self._fd >= 0:
            with suppress(OSError):  # a pipe has no size
                self.size()
            os.close(self._fd)
            self._fd = -1


class BytesSource(Source):
    """A stream in memory."""

    def __init__(self, data: bytes, path: str = "<memory>") -> None:
        self.path = path
        self._data = data

    def read_at(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]

    def size(self) -> int:
        return len(self._data)

    def close(self) -> None:
        pass
