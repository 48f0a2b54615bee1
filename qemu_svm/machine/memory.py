"""Where the guest's RAM lies in its physical address space.

A stream gives RAM as blocks; the hole under 4 GiB depends on the machine type.

Source: QEMU ``hw/i386/pc_piix.c``, ``pc_q35.c``, ``microvm.c`` (7.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemu_svm.errors import AddressError
from qemu_svm.machine.model import Machine
from qemu_svm.stream import RamBlock

if TYPE_CHECKING:
    from qemu_svm.stream.ram.read import Ram

_GIB = 1 << 30
_HIGH = 4 * _GIB
_MAIN = ("pc.ram", "ram-node0", "mem", "ram")


def ram_ranges(machine: Machine) -> list[tuple[int, int]]:
    """Ranges ``(start, end)`` of the main RAM in guest-physical addresses."""
    if not machine.blocks:
        return []
    size = main_block(machine).used_length
    low = _low_end(machine.name or "", size)
    if size <= low:
        return [(0, size)]
    return [(0, low), (_HIGH, _HIGH + size - low)]


def main_block(machine: Machine) -> RamBlock:
    """The block of the main RAM: by its name, else the largest; there must be one."""
    named = [block for block in machine.blocks if block.name in _MAIN]
    return named[0] if named else max(machine.blocks, key=lambda block: block.used_length)


def _low_end(name: str, size: int) -> int:
    if "q35" in name:
        return size if size < 0xB000_0000 else 2 * _GIB
    if "microvm" in name:
        return min(size, 3 * _GIB)
    return size if size < 0xE000_0000 else 3 * _GIB


def backed(machine: Machine, address: int, size: int) -> bool:
    """Whether all of ``size`` bytes at ``address`` are the guest's main RAM."""
    return any(start <= address and address + size <= end for start, end in ram_ranges(machine))


class GuestMemory:
    """L1-physical memory as it is at the end of the stream.

    :param ram: the index of the stream's RAM records.
    """

    def __init__(self, machine: Machine, ram: Ram) -> None:
        self._machine = machine
        self._ram = ram

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes at an L1-physical address.

        :raises AddressError: some of it is not RAM, or was never sent.
        :raises StreamError: what the stream has for it is damaged.
        """
        if address < 0 or size < 0:
            raise AddressError("a negative address or size", address=address)
        parts: list[bytes] = []
        while size > 0:
            part = self._part(address, size)
            parts.append(part)
            address += len(part)
            size -= len(part)
        return b"".join(parts)

    def _part(self, address: int, size: int) -> bytes:
        before = 0  # bytes of the block in the ranges below
        for start, end in ram_ranges(self._machine):
            if start <= address < end:
                block = self._ram.block(main_block(self._machine).name)
                offset, page_size = before + address - start, self._ram.page_size
                size = min(size, end - address, page_size - offset % page_size)
                if not self._ram.was_sent(block, offset // page_size):
                    raise AddressError("the page was never sent", address=address)
                return self._ram.read(block, offset, size)
            before += end - start
        raise AddressError("the guest has no RAM there", address=address)
