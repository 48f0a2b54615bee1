"""Searching: every place, also across pages, in every world."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.memory.formats import parse, shown
from qemu_svm.memory.paging import mode
from qemu_svm.memory.search import Reverse, search
from qemu_svm.memory.spaces import Space
from tests.conftest import STREAMS
from tests.memory.support import made, opened, tables

PAGE = 4096


def plain(data: bytes, pattern: bytes) -> list[int]:
    found, at = [], data.find(pattern)
    while at >= 0:
        found.append(at)
        at = data.find(pattern, at + 1)
    return found


@given(
    st.lists(st.sampled_from([b"ab", b"\0\0", b"abab", b"ba"]), min_size=4, max_size=4),
    st.binary(min_size=1, max_size=4) | st.sampled_from([b"abab", b"ba", b"b\0", b"\0\0a"]),
)
@settings(max_examples=60)
def test_every_place_is_found(kinds: list[bytes], pattern: bytes) -> None:
    pages = {at * PAGE: (kind * PAGE)[:PAGE] for at, kind in enumerate(kinds)}
    memory = made(pages, 4 * PAGE)
    expected = plain(memory.read(0, 4 * PAGE), pattern)
    assert [hit.address for hit in search(memory.physical, pattern)] == expected


def test_what_is_apart_is_not_joined() -> None:
    memory = made({0: b"x" * PAGE, 2 * PAGE: b"x" * PAGE}, 4 * PAGE)
    assert len(list(search(memory.physical, b"x" * PAGE))) == 2
    assert list(search(memory.physical, b"x" * (PAGE + 1))) == []
    assert list(search(memory.physical, b"")) == []


def test_virtual_neighbours_are_joined() -> None:
    pages = tables({
        PAGE: 2 * PAGE | 7, 2 * PAGE: 3 * PAGE | 7, 3 * PAGE: 4 * PAGE | 7,
        4 * PAGE: 9 * PAGE | 7, 4 * PAGE + 8: 7 * PAGE | 7,
    })  # fmt: skip
    pages |= {9 * PAGE: b"a" * (PAGE - 2) + b"xy", 7 * PAGE: b"zw".ljust(PAGE, b"\0")}
    memory = made(pages)
    space = Space(memory.physical, mode(1 << 31, PAGE, 1 << 5, 1 << 10), world="l1v")
    (hit,) = search(space, b"xyzw")
    assert (hit.address, hit.l1_physical) == (PAGE - 2, 10 * PAGE - 2)
    assert list(search(memory.physical, b"xyzw")) == []


def test_memory_of_l2_is_named() -> None:
    with opened(STREAMS / "guests" / "qemu10.0-linux6.12-nested-npt.mig.zst") as memory:
        code = memory.world("l2v").read(memory.l2_registers(0).next_instruction, 12)
        space = memory.world("l2p")
        assert isinstance(space, Space)
        reverse = Reverse(space)
        hits = list(search(memory.physical, code))
        # L1 has it in its image too, from where it was copied.
        places = [hit.l1_physical for hit in hits]
        inside = [place for place in places if 0x400000 <= place < 0x600000]
        assert len(inside) == len(places) - 1
        for place in places:
            expected = [place - 0x400000] if place in inside else []
            assert reverse.addresses(place) == expected
        assert [hit.l1_physical for hit in search(space, code)] == inside


def test_formats() -> None:
    assert shown(0x1234, parse("/xw")) == "0x00001234"
    assert shown((1 << 16) - 2, parse("4dh")) == "-2"
    assert shown(8, parse("/o")) == "010"
    assert shown(65, parse("c")) == "65 'A'"
    assert shown(5, parse("tb")) == "00000101"
    assert shown(None, parse("16xg")) == "??"
    assert (parse("/16xg").count, parse("/16xg").size) == (16, 8)
