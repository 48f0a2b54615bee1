"""The guests as images: they assemble, they are small, they are the same every time."""

from __future__ import annotations

import struct

import pytest

from qemu_svm.errors import LabError, PathError
from qemu_svm.lab.guests import GUESTS, LINUX, Guest, assemble, find, values

LIMIT = 1280
"""Bytes of the largest image; more than half of each are the values."""

every_guest = pytest.mark.parametrize("guest", GUESTS.values(), ids=GUESTS)


@every_guest
def test_is_small_and_reproducible(guest: Guest) -> None:
    first, second = assemble(guest), assemble(guest)
    assert first == second
    assert len(first.data) <= LIMIT


@every_guest
def test_is_a_multiboot_image_at_its_address(guest: Guest) -> None:
    image = assemble(guest)
    magic, flags, checksum, header, load, end, clear, entry = struct.unpack_from("<8I", image.data)
    assert (magic + flags + checksum) & 0xFFFFFFFF == 0
    assert magic == 0x1BADB002
    assert header == load == values.IMAGE
    assert end == clear == values.IMAGE + len(image.data)
    assert entry == image.symbols["start"]


@every_guest
def test_code_is_clear_of_the_data(guest: Guest) -> None:
    image = assemble(guest)
    assert image.symbols["image_end"] <= values.DATA
    assert image.symbols["l2"] < image.symbols["l2_end"] <= image.symbols["image_end"]


@every_guest
def test_no_value_is_both_l1s_and_l2s(guest: Guest) -> None:
    """But those that an architecture or a flat segment leaves no choice about."""
    l2 = values.l2(guest.mode, nested_paging=guest.nested_paging)
    free = {name for name in values.L1 if not name.endswith((".attrib", ".limit", ".base"))}
    same = {name for name in free & set(l2) if values.L1[name] == l2[name]}
    assert same == set()
    bases = {"fs.base", "gs.base", "ldt.base", "tr.base"}
    assert {name for name in bases if values.L1[name] == l2[name]} == set()


def test_addresses_do_not_overlap() -> None:
    for world in ("L1", "L2"):
        mine = {
            address
            for name, address in values.ADDRESSES.items()
            if address % 0x1000 == 0 and name.startswith("L2_") == (world == "L2")
        }
        names = [
            name
            for name, address in values.ADDRESSES.items()
            if address in mine and name.startswith("L2_") == (world == "L2")
        ]
        assert len(mine) == len(names)


def test_the_firmware_of_linux_l2_ends_at_the_reset_vector() -> None:
    rom = assemble(LINUX).data
    assert len(rom) == 0x10000
    # A far jump to F000:0000, where L2 begins.
    assert rom[0xFFF0:0xFFF5] == bytes([0xEA, 0x00, 0x00, 0x00, 0xF0])
    assert find("linux") is LINUX


def test_an_unknown_guest_is_told_with_those_like_it() -> None:
    with pytest.raises(PathError, match="unknown guest 'nested-ntp'") as caught:
        find("nested-ntp")
    assert caught.value.near[0] == "nested-npt"


def test_missing_binutils_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LabError, match=r"'as' is not installed \(install the package binutils"):
        assemble(find("nested"))
