"""Translations: against QEMU's monitor, a plain second walker, and hostile tables."""

from __future__ import annotations

import re
import time
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import AddressError, PathError
from qemu_svm.memory.memory import GuestMemory
from qemu_svm.memory.paging import mode
from qemu_svm.memory.results import Run, Status
from qemu_svm.memory.spaces import Space
from tests.conftest import STREAMS
from tests.memory.support import BARE, made, opened, tables, truth_of

PAGE = 4096
PG, WP, PSE, PAE, LA57, SMEP, SMAP = (1 << n for n in (31, 16, 4, 5, 12, 20, 21))
LMA, NXE = 1 << 10, 1 << 11
NX = 1 << 63


@pytest.mark.parametrize("name", BARE)
def test_walks_are_those_of_qemus_monitor(name: str) -> None:
    with truth_of(name) as (memory, truth):
        space = memory.world("l1v")
        for text, answer in truth["gva2gpa"].items():
            found = space.walk(int(text, 0))
            expected = None if answer == "Unmapped" else int(answer.removeprefix("gpa: "), 16)
            assert found.address == expected, text
            if expected is None:
                with pytest.raises(AddressError):
                    space.translate(int(text, 0))
            else:
                assert space.translate(int(text, 0)) == expected, text


@pytest.mark.parametrize("name", BARE)
def test_virtual_memory_is_what_qemus_monitor_showed(name: str) -> None:
    with truth_of(name) as (memory, truth):
        for world, answers in (("l1v", truth["x"]), ("l1p", truth["xp"])):
            space = memory.world(world)
            for line in answers.values():
                address, _, words = line.partition(":")
                place = int(address, 16)
                if "Cannot" in words:
                    with pytest.raises(AddressError):
                        space.read(place, 8)
                elif place != 0xFEC00000:  # the I/O APIC, which no stream has as memory
                    count = len(words.split())
                    data = array("I", space.read(place, 4 * count))
                    assert [f"{word:#010x}" for word in data] == words.split(), line


@pytest.mark.parametrize("name", BARE)
def test_all_leaves_are_those_of_qemus_monitor(name: str) -> None:
    with truth_of(name) as (memory, truth):
        space = memory.world("l1v")
        assert isinstance(space, Space)
        lines = re.findall(r"(\w+): (\w+) (\S+)", truth["info tlb"])
        bits = {6: 7, 4: 5, 3: 6, 8: 1, 7: 2}  # of the letters, which come backwards
        expected, found = [], []
        for start, target, letters in lines:
            flags = {bit for at, bit in bits.items() if letters[at] != "-"}
            # The monitor forgets bits 39:32 of a 4 MiB page.
            expected.append((int(start, 16), int(target, 16) & 0xFFFF_FFFF, flags))
        for start, _, target, _, _, _, entry in space.leaves():
            # D, A, PCD, PWT, U, W
            del entry
            found.append((start, target & 0xFFFF_FFFF))
        assert found == [one[:2] for one in expected]


@pytest.mark.parametrize("name", BARE)
def test_all_ranges_are_those_of_qemus_monitor(name: str) -> None:
    with truth_of(name) as (memory, truth):
        space = memory.world("l1v")
        assert isinstance(space, Space)
        expected = [
            (int(start, 16), int(end, 16), letters)
            for start, end, letters in re.findall(r"(\w+)-(\w+) \w+ (\S+)", truth["info mem"])
        ]
        found: list[tuple[int, int, str]] = []
        for one in space.ranges():
            letters = ("u" if "U" in one.flags else "-") + "r" + ("w" if "W" in one.flags else "-")
            if found and found[-1][1:] == (one.start, letters):
                found[-1] = (found[-1][0], one.end, letters)
            else:
                found.append((one.start, one.end, letters))
        assert found == expected


def reference(pages: dict[int, bytes], cr0: int, cr3: int, cr4: int, efer: int, va: int):  # type: ignore[no-untyped-def]
    """Another walker, plainly: the physical address, or None."""

    def load(address: int, size: int) -> int:
        page = pages.get(address & ~0xFFF)
        if page is None:
            raise LookupError
        return int.from_bytes(page[address & 0xFFF :][:size], "little")

    if not cr0 & PG:
        return va if va < 1 << 32 else None
    if not cr4 & PAE and not efer & LMA:
        if va >= 1 << 32:
            return None
        entry = load((cr3 & 0xFFFFF000) + (va >> 22) * 4, 4)
        if not entry & 1:
            return None
        if entry & 0x80 and cr4 & PSE:
            if entry & 1 << 21:
                return None
            return (entry & 0xFFC00000) + ((entry >> 13 & 0xFF) << 32) + (va & 0x3FFFFF)
        entry = load((entry & 0xFFFFF000) + (va >> 12 & 1023) * 4, 4)
        return (entry & 0xFFFFF000) + (va & 0xFFF) if entry & 1 else None
    long = bool(efer & LMA)
    shifts = [12, 21, 30] + ([39] if long else []) + ([48] if long and cr4 & LA57 else [])
    top = shifts[-1] + 9 if long else 32
    if long and (va >> top - 1) not in (0, (1 << 65 - top) - 1):
        return None
    if not long and va >= 1 << 32:
        return None
    table = cr3 & (0xFFFFFFFFFF000 if long else 0xFFFFFFE0)
    for shift in reversed(shifts):
        entry = load(table + (va >> shift & (3 if shift == 30 and not long else 511)) * 8, 8)
        if not entry & 1 or entry >> 51 & 1 or (entry & NX and not efer & NXE):
            return None
        large = bool(entry & 0x80)
        if not long and (entry >> 52 & 0x7FF or (shift == 30 and entry & NX)):
            return None
        if shift >= 39 and large:
            return None
        if shift == 12 or (large and (shift == 21 or (shift == 30 and long))):
            below = (1 << shift) - 1
            if shift > 12 and entry & below & ~0x1FFF:
                return None
            return (entry & 0xFFFFFFFFFF000 & ~below) + (va & below)
        table = entry & 0xFFFFFFFFFF000
    return None


MODES = {
    "none": (0, 0, 0),
    "32": (PG, 0, 0),
    "pse": (PG, PSE, 0),
    "pae": (PG, PAE, NXE),
    "pae-nonx": (PG, PAE, 0),
    "long": (PG, PAE, LMA | NXE),
    "long-nonx": (PG, PAE, LMA),
    "five": (PG, PAE | LA57, LMA | NXE),
}


@st.composite
def guests(draw: st.DrawFn):  # type: ignore[no-untyped-def]
    """Tables with a few random entries that lead into one another."""
    cr0, cr4, efer = MODES[draw(st.sampled_from(sorted(MODES)))]
    wide = bool(cr4 & PAE)
    size = 8 if wide else 4
    entries = {}
    indices = st.sampled_from([0, 1, 2, 3, 255, 256, 510, 511])
    for number in range(1, 8):
        for index in draw(st.lists(indices, min_size=1, max_size=5, unique=True)):
            flags = draw(st.sampled_from([0x1, 0x3, 0x7, 0x67, 0xE7, 0x81, 0x0, 0x23]))
            target = draw(st.integers(1, 9)) * PAGE
            odd = draw(st.sampled_from([0] * 12 + [NX, 1 << 51, 1 << 62, 1 << 21, 1 << 30, 0x2000]))
            if flags & 0x80 and draw(st.booleans()):
                target = draw(st.integers(0, 7)) << 30
            entry = target | flags | odd
            entries[number * PAGE + index * size] = entry & (1 << 8 * size) - 1
    return cr0, cr4, efer, tables(entries, size)


ADDRESSES = st.lists(
    st.builds(
        lambda i5, i4, i3, i2, i1, low, top: (
            (top << 57) | i5 << 48 | i4 << 39 | i3 << 30 | i2 << 21 | i1 << 12 | low
        ),
        *[st.sampled_from([0, 1, 2, 3, 255, 256, 510, 511])] * 5,
        st.integers(0, 4095),
        st.sampled_from([0, 0, 0, 127]),
    )
    | st.integers(0, (1 << 32) - 1)
    | st.integers(0, (1 << 64) - 1),
    min_size=1,
    max_size=12,
)


@given(guests(), ADDRESSES)
@settings(max_examples=300)
def test_walks_are_those_of_a_plain_walker(guest, addresses) -> None:  # type: ignore[no-untyped-def]
    cr0, cr4, efer, pages = guest
    memory = made(pages)
    space = Space(memory.physical, mode(cr0, PAGE, cr4, efer), world="l1v")
    for _ in range(2):  # the second time out of what was kept
        for address in addresses:
            try:
                expected = reference(pages, cr0, PAGE, cr4, efer, address)
            except LookupError:
                expected = None
            try:
                found = space.translate(address)
            except AddressError:
                found = None
            assert found == expected
            walk = space.walk(address)
            assert walk.address == expected
            if expected is None:
                assert walk.status is not Status.MAPPED


@given(guests(), guests(), ADDRESSES)
@settings(max_examples=200)
def test_two_dimensional_walks_are_two_walks(inner, outer, addresses) -> None:  # type: ignore[no-untyped-def]
    _, ncr4, nefer, nested = outer
    cr0, cr4, efer, _ = inner
    memory = made(nested)
    one = Space(memory.physical, mode(PG, PAGE, ncr4, nefer), world="l2p", nested=True)
    both = Space(one, mode(cr0, PAGE, cr4, efer), world="l2v")
    for address in addresses:
        walk = both.walk(address)
        try:
            assert both.locate(address) == walk.address
        except AddressError:
            assert walk.status is not Status.MAPPED
        if walk.status is Status.MAPPED:
            assert walk.l2_physical is not None
            assert one.translate(walk.l2_physical) == walk.address
            stages = [step.stage for step in walk.steps]
            assert stages.count("guest") <= 5
            assert both.paging.levels == () or stages[0] == "guest"
            for step in walk.steps:
                if step.stage == "guest":
                    place = step.table + step.index * both.paging.entry
                    data = memory.read(one.translate(place), both.paging.entry)
                    assert int.from_bytes(data, "little") == step.entry


@given(guests(), st.integers(1, 60))
@settings(max_examples=100)
def test_what_is_listed_is_what_is_translated(guest, most) -> None:  # type: ignore[no-untyped-def]
    cr0, cr4, efer, pages = guest
    memory = made(pages)
    space = Space(memory.physical, mode(cr0, PAGE, cr4, efer), world="l1v")
    last = -1
    for run in until_limit(space.runs(most)):
        assert run.start > last
        last = run.end - 1
        for address in (run.start, run.start + run.size // 2, run.end - 1):
            assert space.translate(address) == (run.target or 0) + address - run.start


def until_limit(runs: Iterator[Run]) -> Iterator[Run]:
    while True:
        try:
            yield next(runs)
        except StopIteration:
            return
        except AddressError as error:
            if error.status != "limit":
                raise
            return


def long_mode(entries: dict[int, int], *, cr0: int = PG | WP, cr4: int = PAE) -> Space:
    memory = made(tables(entries))
    return Space(memory.physical, mode(cr0, PAGE, cr4, LMA | NXE), world="l1v")


def test_hostile_tables_end() -> None:
    # One table that is all tables: every entry of it leads to itself.
    full = {PAGE + 8 * index: PAGE | 7 for index in range(512)}
    space = long_mode(full)
    begun = time.process_time()
    with pytest.raises(AddressError, match="limit") as met:
        for _ in space.runs(1 << 17):
            pass
    assert met.value.status == "limit"
    with pytest.raises(AddressError, match="limit"):
        list(space.ranges(1 << 17))
    assert time.process_time() - begun < 20
    assert space.walk(0x123456789ABC & ~(1 << 47)).status is Status.MAPPED
    assert space.read_u64(8) == PAGE | 7


def test_a_table_that_maps_itself_once_is_listed_whole() -> None:
    # As Windows and many teaching kernels do it.
    space = long_mode({PAGE: 2 * PAGE | 7, PAGE + 8 * 511: PAGE | 7, 2 * PAGE: 3 * PAGE | 7,
                       3 * PAGE: 4 * PAGE | 7, 4 * PAGE: 5 * PAGE | 7})  # fmt: skip
    found = {run.start: run.target for run in space.runs()}
    assert found[0] == 5 * PAGE
    assert found[0xFFFF_FFFF_FFFF_F000] == PAGE
    assert space.translate(0xFFFF_FF80_0000_0000) == 4 * PAGE


def test_why_a_walk_ends() -> None:
    space = long_mode({
        PAGE: 2 * PAGE | 7, 2 * PAGE: 3 * PAGE | 7, 3 * PAGE: 4 * PAGE | 7,
        4 * PAGE: 5 * PAGE | 7,
        4 * PAGE + 8: 0,
        4 * PAGE + 16: 5 * PAGE | 7 | 1 << 51,
        4 * PAGE + 24: 1 << 40 | 7,
        4 * PAGE + 32: 0x100000 | 7,
        PAGE + 8: 1 << 40 | 7,
        PAGE + 16: 0x100000 | 7,
    })  # fmt: skip
    statuses = {
        0: Status.NOT_SENT, 0x1000: Status.NOT_PRESENT, 0x2000: Status.RESERVED,
        0x3000: Status.NO_RAM, 0x4000: Status.NOT_SENT, 1 << 39: Status.NO_RAM,
        2 << 39: Status.NOT_SENT, 1 << 47: Status.NOT_CANONICAL, 1 << 63: Status.NOT_CANONICAL,
    }  # fmt: skip
    assert {address: space.walk(address).status for address in statuses} == statuses
    assert space.walk(0x3000).address == 1 << 40  # where it leads is known all the same
    assert space.walk(1 << 39).address is None


@pytest.mark.parametrize(
    ("access", "entry", "cr0", "cr4", "allowed"),
    [
        ("r", 0x1, PG, PAE, True),
        ("u", 0x1, PG, PAE, False),
        ("ru", 0x5, PG, PAE, True),
        ("w", 0x5, PG, PAE, True),  # a supervisor may write anywhere with CR0.WP clear
        ("w", 0x5, PG | WP, PAE, False),
        ("wu", 0x5, PG, PAE, False),
        ("w", 0x3, PG | WP, PAE, True),
        ("x", 0x1 | NX, PG, PAE, False),
        ("x", 0x5, PG, PAE | SMEP, False),
        ("xu", 0x5, PG, PAE | SMEP, True),
        ("r", 0x5, PG, PAE | SMAP, False),
        ("x", 0x5, PG, PAE | SMAP, True),
    ],
)
def test_permissions(access: str, entry: int, cr0: int, cr4: int, allowed: bool) -> None:
    pages = tables({PAGE: 2 * PAGE | 7, 2 * PAGE: 3 * PAGE | 7, 3 * PAGE: 4 * PAGE | 7,
                    4 * PAGE: PAGE | entry})  # fmt: skip
    memory = made(pages)
    space = Space(memory.physical, mode(cr0, PAGE, cr4, LMA | NXE), world="l1v")
    assert (space.walk(0, access).status is Status.MAPPED) == allowed
    assert space.walk(0).status is Status.MAPPED
    if "r" in access and cr4 & SMAP:
        suspended = Space(
            memory.physical, mode(cr0, PAGE, cr4, LMA | NXE), world="l1v", ac=True
        )  # fmt: skip
        assert suspended.walk(0, access).status is Status.MAPPED


def nested_with(entry: int, gpa: int = 0) -> Space:
    index = gpa >> 12 & 511
    pages = tables({PAGE + (gpa >> 39 & 511) * 8: 2 * PAGE | 7,
                    2 * PAGE + (gpa >> 30 & 511) * 8: 3 * PAGE | 7,
                    3 * PAGE + (gpa >> 21 & 511) * 8: 4 * PAGE | 7,
                    4 * PAGE + index * 8: entry})  # fmt: skip
    paging = mode(PG, PAGE, PAE, LMA | NXE)
    return Space(made(pages).physical, paging, world="l2p", nested=True)


def test_kvms_marks_for_mmio_are_no_addresses() -> None:
    # As a Linux 6.1 as L1 had them for the I/O APIC and the local APIC.
    for gpa in (0xFEC00000, 0xFED00000, 0xFEE00000):
        space = nested_with(1 << 51 | gpa | 0xA7, gpa)
        walk = space.walk(gpa + 0x20)
        assert (walk.status, walk.address) == (Status.MMIO, None)
        assert list(space.runs()) == []
        assert [piece.status for piece in space.pieces(gpa, 8)] == [Status.MMIO]
    assert nested_with(1 << 51 | 0xFEC00000 | 0xA7, 0xFED00000).walk(0xFED00000).status is (
        Status.RESERVED
    )


def test_every_nested_access_is_a_users() -> None:
    for entry, access, expected in (
        (PAGE | 7, "", Status.MAPPED), (PAGE | 3, "", Status.PERMISSION),
        (PAGE | 5, "", Status.MAPPED), (PAGE | 5, "w", Status.PERMISSION),
        (PAGE | 7 | NX, "x", Status.PERMISSION), (PAGE | 7 | NX, "r", Status.MAPPED),
    ):  # fmt: skip
        walk = nested_with(entry).walk(0, access)
        assert walk.status is expected
    assert nested_with(PAGE | 3).walk(0).address is None
    with pytest.raises(AddressError, match="not permitted"):
        nested_with(PAGE | 3).translate(0)


GUESTS = ["nested-npt", "npt-mmio", "pae-npt", "nested", "pae", "protected", "msrs"]


@pytest.mark.parametrize("guest", GUESTS)
def test_l2_of_the_known_guests_is_where_they_put_it(guest: str) -> None:
    with opened(STREAMS / "guests" / f"qemu10.0-linux6.12-{guest}.mig.zst") as memory:
        assert memory.default_world() == "l2v"
        for name in ("l1", "l2"):
            of = getattr(memory, f"{name}_registers")(0)
            space = memory.world(f"{name}v")
            address = of.next_instruction
            walk = space.walk(address)
            assert walk.status is Status.MAPPED
            if name == "l2":
                paged = space.paging.levels  # type: ignore[union-attr]
                assert walk.address == (address + 0x400000 if paged else address)
                before = space.read(address, 1)
                assert before
            else:
                # The instruction before is VMRUN.
                assert space.read(address - 3, 3) == b"\x0f\x01\xd8"


def test_a_vcpu_that_does_not_run_l2_has_none() -> None:
    with opened(STREAMS / "guests" / "qemu10.0-linux6.12-smp.mig.zst") as memory:
        assert memory.default_world(1) == "l2v"
        for vcpu in memory.machine.vcpus:
            if not vcpu.guest_mode:
                assert memory.default_world(vcpu.index) == "l1v"
                with pytest.raises(PathError, match="not running L2"):
                    memory.world("l2v", vcpu.index)
        with pytest.raises(PathError, match="no readable vCPU 9"):
            memory.world("l1v", 9)
        with pytest.raises(PathError, match="unknown world"):
            memory.world("l3v")


def test_an_identity_of_a_gigabyte_is_one_run() -> None:
    entries = {PAGE: 2 * PAGE | 7, 2 * PAGE: 3 * PAGE | 7}
    entries |= {3 * PAGE + 8 * at: (4 + at) * PAGE | 7 for at in range(64)}
    for at in range(64):
        entries |= {(4 + at) * PAGE + 8 * one: (at << 21 | one << 12) | 7 for one in range(512)}
    space = long_mode(entries)
    assert [(run.start, run.size, run.target) for run in space.runs()] == [(0, 64 << 21, 0)]
    assert sum(1 for _ in space.leaves()) == 64 * 512


def test_reading_across_pages_that_are_apart() -> None:
    pages = dict(tables({
        PAGE: 2 * PAGE | 7, 2 * PAGE: 3 * PAGE | 7, 3 * PAGE: 4 * PAGE | 7,
        4 * PAGE: 7 * PAGE | 7, 4 * PAGE + 8: 6 * PAGE | 7}).items())  # fmt: skip
    pages |= {7 * PAGE: b"a" * PAGE, 6 * PAGE: b"b" * PAGE}
    memory: GuestMemory = made(pages)
    space = Space(memory.physical, mode(PG, PAGE, PAE, LMA | NXE), world="l1v")
    assert space.read(PAGE - 2, 4) == b"aabb"
    assert space.read_u64(PAGE - 4) == int.from_bytes(b"aaaabbbb", "little")
    pieces = list(space.pieces(PAGE - 1, PAGE + 2))
    assert [(one.size, one.status) for one in pieces] == [
        (1, Status.MAPPED), (PAGE, Status.MAPPED), (1, Status.NOT_PRESENT),
    ]  # fmt: skip
