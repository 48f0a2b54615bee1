"""Page-table walks: from a virtual to a physical address.

The four ways in which an x86 translates: not at all, two levels of 4 bytes,
three of 8 (PAE), four or five of 8 (long mode).  Permissions do not matter here.

Source: AMD64 APM volume 2, chapter 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qemu_svm.x86.registers import CR0, CR4, EFER

_PG = CR0.mask("PG")
_PAE, _PSE, _LA57 = CR4.mask("PAE"), CR4.mask("PSE"), CR4.mask("LA57")
_LMA = EFER.mask("LMA")
_PRESENT, _LARGE = 1, 1 << 7
_ADDRESS = 0x000F_FFFF_FFFF_F000
_4G = 0xFFFF_FFFF

Read = Callable[[int, int], bytes]
"""Reads physical memory at (address, size); fewer bytes where there is none."""
Translate = Callable[[int], int | None]


@dataclass(frozen=True, slots=True)
class Paging:
    """The control registers that choose the way and the tables."""

    cr0: int
    cr3: int
    cr4: int
    efer: int

    def walk(self, read: Read, address: int) -> int | None:
        """Physical address of ``address``; None where nothing is mapped."""
        if not self.cr0 & _PG:
            return address & _4G
        if self.efer & _LMA:
            levels = (48, 39, 30, 21, 12) if self.cr4 & _LA57 else (39, 30, 21, 12)
            if not _canonical(address, levels[0] + 9):
                return None
            return _walk(read, self.cr3 & _ADDRESS, address, levels)
        if self.cr4 & _PAE:
            return _walk(read, self.cr3 & 0xFFFF_FFE0, address & _4G, (30, 21, 12))
        return self._two_levels(read, address & _4G)

    def _two_levels(self, read: Read, address: int) -> int | None:
        directory = _entry(read, (self.cr3 & 0xFFFF_F000) + (address >> 22) * 4, 4)
        if not directory & _PRESENT:
            return None
        if directory & _LARGE and self.cr4 & _PSE:
            return directory & 0xFFC0_0000 | (directory >> 13 & 0xFF) << 32 | address & 0x3F_FFFF
        table = _entry(read, (directory & 0xFFFF_F000) + (address >> 12 & 0x3FF) * 4, 4)
        return table & 0xFFFF_F000 | address & 0xFFF if table & _PRESENT else None


def _canonical(address: int, width: int) -> bool:
    # Whether the bits above the width of an address repeat its highest one.
    top = address >> width - 1
    return top in (0, (1 << 64 - width + 1) - 1)


def _walk(read: Read, table: int, address: int, levels: tuple[int, ...]) -> int | None:
    for shift in levels:
        entry = _entry(read, table + (address >> shift & 0x1FF) * 8, 8)
        if not entry & _PRESENT:
            return None
        if (
            shift == 12
            or (shift <= 30 and len(levels) > 3 and entry & _LARGE)
            or (shift == 21 and entry & _LARGE)
        ):
            below = (1 << shift) - 1
            return entry & _ADDRESS & ~below | address & below
        table = entry & _ADDRESS
    return None


def _entry(read: Read, address: int, size: int) -> int:
    data = read(address, size)
    return int.from_bytes(data, "little") if len(data) == size else 0


def through(read: Read, translate: Translate) -> Read:
    """Reading of memory whose addresses are translated once more (nested paging).

    A read must not cross a page.
    """

    def nested(address: int, size: int) -> bytes:
        place = translate(address)
        return b"" if place is None else read(place, size)

    return nested
