"""Columns of numbers that may have more rows than belong into memory.

The last rows are in memory; where there are many, those before them are in an unnamed
temporary file, in the directory of those for piped input.
"""

from __future__ import annotations

import os
import weakref
from array import array
from collections.abc import Sequence
from typing import overload

from qemu_svm.errors import EnvironmentFault
from qemu_svm.source.spool import spool_directory

MOST_ROWS = 1 << 18
"""Rows in memory."""
_NEAR = 256
"""Rows that are read at once for a single one."""
_PLACES = 64
"""So many times these rows are kept."""


class Column(Sequence[int]):
    """Numbers of one kind, to which others are appended.

    :param code: of their type, as in :mod:`array`.
    """

    def __init__(self, code: str) -> None:
        self.stored = 0
        """Rows that are in the file."""
        self._tail: array[int] = array(code)
        self._fd = -1
        self._near: dict[int, array[int]] = {}

    def __len__(self) -> int:
        return self.stored + len(self._tail)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> array[int]: ...
    def __getitem__(self, at: int | slice) -> int | array[int]:
        if isinstance(at, slice):
            first, end, _ = at.indices(len(self))
            return self._rows(first, max(first, end))
        if at < 0:
            at += len(self)
        if at >= self.stored:
            return self._tail[at - self.stored]
        first = at - at % _NEAR
        rows = self._near.get(first)
        if rows is None or at - first >= len(rows):
            if len(self._near) >= _PLACES:
                self._near.clear()
            rows = self._near[first] = self._rows(first, min(first + _NEAR, self.stored))
        return rows[at - first]

    def _rows(self, first: int, end: int) -> array[int]:
        tail = self._tail
        if first >= self.stored:
            return tail[first - self.stored : end - self.stored]
        rows = array(tail.typecode)
        size = rows.itemsize
        rows.frombytes(os.pread(self._fd, (min(end, self.stored) - first) * size, first * size))
        if end > self.stored:
            rows += tail[: end - self.stored]
        return rows

    def whole(self) -> memoryview:
        """Return a view of all rows, which are all in memory."""
        assert not self.stored
        return memoryview(self._tail)

    def append(self, value: int) -> None:
        """Append a number."""
        self._tail.append(value)
        if len(self._tail) > MOST_ROWS:
            self._store()

    def extend(self, values: bytes | memoryview | array[int]) -> None:
        """Append numbers of the same type."""
        self._tail.frombytes(memoryview(values).cast("B"))
        if len(self._tail) > MOST_ROWS:
            self._store()

    def replace_last(self, value: int) -> None:
        """Change the last number."""
        self._tail[-1] = value

    def pop(self) -> None:
        """Remove the last number."""
        self._tail.pop()

    def _store(self) -> None:
        # Write all but the last row, which may be changed, into the file.
        last = self._tail.pop()
        data = memoryview(self._tail).cast("B")
        try:
            if self._fd < 0:
                self._fd = _temporary()
                weakref.finalize(self, os.close, self._fd)
            place = self.stored * self._tail.itemsize
            while data:
                done = os.pwrite(self._fd, data, place)
                data, place = data[done:], place + done
        except OSError as error:
            raise EnvironmentFault(
                f"no space for the index of RAM in a temporary file: {error.strerror}",
                hint="set TMPDIR to a directory with more free space",
            ) from error
        self.stored += len(self._tail)
        self._tail = array(self._tail.typecode, (last,))


def _temporary() -> int:
    import tempfile

    with tempfile.TemporaryFile(dir=spool_directory(), buffering=0) as file:
        return os.dup(file.fileno())
