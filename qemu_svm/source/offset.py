"""A stream that starts somewhere inside a file.

``migrate file:NAME,offset=N`` keeps the first N bytes of the file and writes the
stream after them.  Source: QEMU ``migration/file.c`` (8.2 to 10.2).
"""

from __future__ import annotations

from qemu_svm.limits import MIB
from qemu_svm.source.base import BackingFile, Source

STREAM_MAGIC = b"QEVM\x00\x00\x00\x03"
SCANNED = 64 * MIB
PAGE = 4096
_STEP = MIB


class OffsetSource(Source):
    """``parent`` from ``start`` on, to its end or for ``length`` bytes.  Owns ``parent``."""

    def __init__(self, parent: Source, start: int, length: int | None = None) -> None:
        self.path = parent.path
        self._parent = parent
        self._start = start
        self._length = length

    def read_at(self, offset: int, size: int) -> bytes:
        if self._length is not None:
            size = max(0, min(size, self._length - offset))
        data = self._parent.read_at(self._start + offset, size)
        self.damage = self._parent.damage
        return data

    def size(self) -> int:
        size = self._parent.size()
        self.damage = self._parent.damage
        left = max(0, size - self._start)
        return left if self._length is None else min(left, self._length)

    def backing_file(self) -> BackingFile | None:
        if self._length is not None:
            return None  # it would go on behind the end
        parent = self._parent.backing_file()
        return parent and parent._replace(start=parent.start + self._start)

    def close(self) -> None:
        self._parent.close()


def find_stream(source: Source) -> int | None:
    """Return the offset of the first page that starts like a stream, within 64 MiB."""
    for at in range(0, SCANNED, _STEP):
        data = source.read_at(at, _STEP)
        hit = data.find(STREAM_MAGIC)
        while hit >= 0:
            if hit % PAGE == 0:
                return at + hit
            hit = data.find(STREAM_MAGIC, hit + 1)
        if len(data) < _STEP:
            break
    return None
