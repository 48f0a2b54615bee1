"""Page-table walks in every mode, on tables made here and on those of a capture."""

from __future__ import annotations

import struct

import pytest

from qemu_svm.x86.paging import Paging, through

PG, PAE, PSE, LA57, LMA = 1 << 31, 1 << 5, 1 << 4, 1 << 12, 1 << 10
PRESENT, LARGE = 1, 0x80
ADDRESS = 0x1234_5678


class Memory:
    """Physical memory of written words only."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def put(self, address: int, value: int, size: int = 8) -> None:
        for index, byte in enumerate(value.to_bytes(size, "little")):
            self.bytes[address + index] = byte

    def read(self, address: int, size: int) -> bytes:
        found = [self.bytes.get(address + index) for index in range(size)]
        return b"" if None in found else bytes(byte or 0 for byte in found)


def four_levels(memory: Memory, address: int, tables: list[int], last: int) -> None:
    shifts = (48, 39, 30, 21, 12)[-len(tables) :]
    for table, shift, entry in zip(tables, shifts, [*tables[1:], last], strict=True):
        memory.put(table + (address >> shift & 0x1FF) * 8, entry | PRESENT)


def test_without_paging_addresses_are_physical() -> None:
    assert Paging(0x11, 0x1000, 0, 0).walk(Memory().read, 0x1_0000_1234) == 0x1234


@pytest.mark.parametrize("levels", [4, 5])
def test_long_mode(levels: int) -> None:
    memory = Memory()
    tables = [0x1000 * (index + 1) for index in range(levels)]
    four_levels(memory, ADDRESS, tables, 0xABC_D000)
    paging = Paging(PG | 1, 0x1000 | 0x18, PAE | (LA57 if levels == 5 else 0), LMA)
    assert paging.walk(memory.read, ADDRESS) == 0xABC_D678
    assert paging.walk(memory.read, ADDRESS + 0x1000) is None
    memory.put(tables[-1] + (ADDRESS >> 12 & 0x1FF) * 8, 0xABC_D000)  # not present
    assert paging.walk(memory.read, ADDRESS) is None


def test_large_pages_in_long_mode() -> None:
    memory = Memory()
    four_levels(memory, ADDRESS, [0x1000, 0x2000, 0x3000], 0x4000_0000)
    memory.put(0x3000 + (ADDRESS >> 21 & 0x1FF) * 8, 0x4000_0000 | PRESENT | LARGE | 1 << 63)
    # The walk above was of three tables: 39, 30 and 21 are the shifts of the first ones.
    memory.put(0x1000 + (ADDRESS >> 39 & 0x1FF) * 8, 0x2000 | PRESENT)
    memory.put(0x2000 + (ADDRESS >> 30 & 0x1FF) * 8, 0x3000 | PRESENT)
    paging = Paging(PG | 1, 0x1000, PAE, LMA)
    assert paging.walk(memory.read, ADDRESS) == 0x4000_0000 | ADDRESS & 0x1F_FFFF
    memory.put(0x2000 + (ADDRESS >> 30 & 0x1FF) * 8, 0x8000_0000 | PRESENT | LARGE)
    assert paging.walk(memory.read, ADDRESS) == 0x8000_0000 | ADDRESS & 0x3FFF_FFFF


def test_pae() -> None:
    memory = Memory()
    memory.put(0x1020 + (ADDRESS >> 30) * 8, 0x2000 | PRESENT)
    memory.put(0x2000 + (ADDRESS >> 21 & 0x1FF) * 8, 0x3000 | PRESENT)
    memory.put(0x3000 + (ADDRESS >> 12 & 0x1FF) * 8, 0x7_0000_5000 | PRESENT)
    paging = Paging(PG | 1, 0x1020, PAE, 0)
    assert paging.walk(memory.read, ADDRESS) == 0x7_0000_5678
    memory.put(0x2000 + (ADDRESS >> 21 & 0x1FF) * 8, 0x4020_0000 | PRESENT | LARGE)
    assert paging.walk(memory.read, ADDRESS) == 0x4020_0000 | ADDRESS & 0x1F_FFFF


def test_two_levels() -> None:
    memory = Memory()
    memory.put(0x1000 + (ADDRESS >> 22) * 4, 0x2000 | PRESENT, 4)
    memory.put(0x2000 + (ADDRESS >> 12 & 0x3FF) * 4, 0x5000 | PRESENT, 4)
    assert Paging(PG | 1, 0x1000, 0, 0).walk(memory.read, ADDRESS) == 0x5678
    memory.put(0x1000 + (ADDRESS >> 22) * 4, 0x0880_0000 | 5 << 13 | PRESENT | LARGE, 4)
    large = Paging(PG | 1, 0x1000, PSE, 0)
    assert large.walk(memory.read, ADDRESS) == 5 << 32 | 0x0880_0000 | ADDRESS & 0x3F_FFFF
    memory.put(0x1000 + (ADDRESS >> 22) * 4, 0, 4)
    assert large.walk(memory.read, ADDRESS) is None


def test_through_nested_paging() -> None:
    memory = Memory()
    memory.bytes[0x9123] = 7
    nested = through(memory.read, lambda address: address + 0x8000 if address < 0x2000 else None)
    assert nested(0x1123, 1) == b"\x07"
    assert nested(0x3000, 1) == b""
    assert struct.unpack("<B", nested(0x1123, 1)) == (7,)


@pytest.mark.parametrize(("levels", "width"), [(4, 48), (5, 57)])
def test_an_address_that_is_not_canonical_is_not_mapped(levels: int, width: int) -> None:
    # The first table has every entry present and leads to itself.
    table = (0x1003).to_bytes(8, "little") * 512
    paging = Paging(PG, 0x1000, PAE | (LA57 if levels == 5 else 0), LMA)

    def read(address: int, size: int) -> bytes:
        return table[address & 0xFFF :][:size]

    highest = (1 << width - 1) - 1
    assert paging.walk(read, highest) == 0x1FFF
    assert paging.walk(read, (1 << 64) - 1 - highest) == 0x1000
    assert paging.walk(read, highest + 1) is None
    assert paging.walk(read, (1 << 64) - 2 - highest) is None
