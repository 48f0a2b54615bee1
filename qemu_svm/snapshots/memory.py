"""Guest memory of a recording: its pieces in an unnamed file, and where each belongs."""

from __future__ import annotations

import os
from bisect import bisect_right

from qemu_svm.errors import SourceError
from qemu_svm.limits import Limits
from qemu_svm.recording.records import Ioctl, Memory
from qemu_svm.snapshots.parts import Range
from qemu_svm.source.plain import FileSource
from qemu_svm.source.spool import spool_directory
from qemu_svm.stream.ram.laid import Piece

_SET_REGIONS = (0x4020_AE46, 0x40A0_AE49)
_PAGE = 4096
_MOST_REGIONS = 1 << 15
_MOST_SIZE = 1 << 44
_SPACE = 16
"""Bits of a slot below the number of its address space."""


class RecordedMemory:
    """Collects the memory of the VMs of a recording.

    The pieces are kept in a file, so that memory does not grow with the guest's.
    """

    def __init__(self, path: str, limits: Limits) -> None:
        self._path = path
        self._most = limits.spool_bytes
        self._fd = -1
        self._size = 0
        self._regions: dict[tuple[int, int], tuple[int, int]] = {}
        self._pieces: dict[int, list[tuple[int, int, int]]] = {}

    def region(self, vm: int, call: Ioctl) -> None:
        """Learn from a call that sets a memory region."""
        data = call.given
        if call.nr not in _SET_REGIONS or call.ret < 0 or len(data) < 24:
            return
        slot = int.from_bytes(data[:4], "little")
        start, size = (int.from_bytes(data[at : at + 8], "little") for at in (8, 16))
        if slot >> _SPACE:
            return  # the address space of SMM
        self._regions.pop((vm, slot), None)
        whole = not start % _PAGE and not size % _PAGE and 0 < size < _MOST_SIZE
        if whole and start < 1 << 52 and len(self._regions) < _MOST_REGIONS:
            self._regions[vm, slot] = (start, size)

    def add(self, vm: int, record: Memory) -> None:
        """Keep a piece; what is no whole page is left out.

        :raises SourceError: there is no room for it.
        """
        size = len(record.data) & -_PAGE
        if record.address % _PAGE or not size or record.address >= 1 << 52:
            return
        if self._size + size > self._most:
            raise SourceError(
                f"'{self._path}' holds more than {self._most} bytes of guest memory",
                hint="raise it with --limit spool_bytes=SIZE",
            )
        try:
            if self._fd < 0:
                import tempfile

                with tempfile.TemporaryFile(dir=spool_directory()) as file:
                    self._fd = os.dup(file.fileno())
            os.pwrite(self._fd, record.data[:size], self._size)
        except OSError as error:
            raise SourceError(
                f"no space for the guest memory of '{self._path}': {error.strerror}",
                hint="set TMPDIR to a directory with more free space",
            ) from error
        self._pieces.setdefault(vm, []).append((record.address, size, self._size))
        self._size += size

    def close(self) -> None:
        """Close the file, unless :meth:`take` gave it away."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def take(self, vm: int) -> tuple[tuple[Range, ...], FileSource | None]:
        """Return the memory of a VM by address, and the file that has it.

        Within a region, what was not recorded is zero; without regions there is what was
        recorded.
        """
        pieces = self._pieces.get(vm, [])
        if not pieces:
            return (), None
        starts, ranges = [], []
        for start, size in self._of(vm, pieces):
            starts.append(start)
            ranges.append((start, size, list[Piece]()))
        for address, size, offset in pieces:
            at = bisect_right(starts, address) - 1
            while at >= 0 and at < len(ranges) and ranges[at][0] < address + size:
                start, length, found = ranges[at]
                low, high = max(start, address), min(start + length, address + size)
                if low < high:
                    place = offset + low - address
                    found.append(Piece((low - start) // _PAGE, (high - low) // _PAGE, place))
                at += 1
        file = FileSource(self._fd, self._path)
        self._fd = -1
        return tuple(Range(start, size, 0, tuple(found)) for start, size, found in ranges), file

    def _of(self, vm: int, pieces: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
        # The regions that do not overlap; else the pieces that touch, joined.
        known = sorted(place for (of, _), place in self._regions.items() if of == vm)
        found: list[tuple[int, int]] = []
        for start, size in known or sorted((address, size) for address, size, _ in pieces):
            end = sum(found[-1]) if found else -1
            if start > end or (known and start == end):
                found.append((start, size))
            elif not known:
                found[-1] = (found[-1][0], max(end, start + size) - found[-1][0])
        return found
