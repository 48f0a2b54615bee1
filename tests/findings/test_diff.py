"""What ``diff`` finds, in real captures and in streams changed on purpose."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.findings.diff import Change, Comparison, compare, differing
from qemu_svm.findings.masks import DEFAULT, Mask, Masks, selects, user_masks
from qemu_svm.machine import Machine, read_machine
from qemu_svm.machine.paths import find
from qemu_svm.source import open_source
from qemu_svm.source.plain import BytesSource
from qemu_svm.stream import Value, read_stream
from tests.conftest import CAPTURES, STREAMS
from tests.support import builders

ONCE = [entry["file"] for entry in CAPTURES if ".resaved" not in entry["file"]]

MAY_CHANGE = {"vcpu0.registers.rcx", "vcpu0.registers.rflags", "vcpu0.nested.l1_save.rflags"}
"""What two seconds of L2 change: it counts in RCX and leaves for a CPUID now and
then, and the arithmetic flags of both are those of the last computation."""


def load(name: str) -> Machine:
    return read_machine(read_stream(open_source(str(STREAMS / name))))


def made(*sections: builders.Section, **options: Any) -> Machine:
    data = builders.stream(sections, **options)
    return read_machine(read_stream(BytesSource(data)))


def section(name: str, payload: bytes, *fields: dict[str, Any], **more: Any) -> builders.Section:
    return builders.Section(name, payload, list(fields), **more)


def field(name: str, kind: str, size: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "size": size, **more}


def paths(found: Comparison) -> list[str]:
    return [one.path for one in found.differences]


def counting(found: Comparison) -> set[str]:
    return {one.path for one in found.counting}


def test_a_capture_against_itself(machine: Machine) -> None:
    assert compare(machine, machine, ()).differences == ()


@pytest.mark.parametrize("name", ONCE)
def test_a_restored_guest_differs_only_where_it_ran(name: str) -> None:
    again = name.replace(".mig", ".resaved.mig")
    found = compare(load(name), load(again))
    assert counting(found) <= MAY_CHANGE
    assert "vcpu0.registers.rcx" in counting(found)
    assert found.masked().keys() == {"tsc", "clocks", "rtc"}


@pytest.mark.parametrize("name", ONCE)
def test_both_ways_the_same(name: str) -> None:
    a, b = load(name), load(ONCE[0])
    there, back = compare(a, b), compare(b, a)
    swap = {Change.ONLY_A: Change.ONLY_B, Change.ONLY_B: Change.ONLY_A}

    # Paths are those of the first stream, so renamed fields stand aside.
    def seen(found: Comparison, turn: bool) -> set[tuple[int, int, Change]]:
        result = set()
        for one in found.differences:
            sides = one.a.offset if one.a else -1, one.b.offset if one.b else -1
            change = swap.get(one.change, one.change) if turn else one.change
            result.add((*(sides[::-1] if turn else sides), change))
        return result

    assert seen(there, turn=False) == seen(back, turn=True)


@pytest.mark.parametrize("name", ONCE)
def test_offsets_lead_to_the_values(name: str) -> None:
    machine, other = load(name), load(ONCE[-1])
    for one in compare(machine, other, ()).differences:
        if one.a is None or "[" in one.path or one.group in ("configuration", "RAM blocks"):
            continue
        if one.group == "sections":
            continue
        place = find(machine, one.path)
        # A field name may occur twice in one section; the first is found.
        if (place.value.offset, place.value.value) != (one.a.offset, one.a.value):
            assert "next_transition_time" in one.path


def test_another_kernel() -> None:
    # 5.10 keeps L1's part in a page of its own; 6.1 gives all of vmcb01.
    found = compare(
        load("qemu5.2-linux5.10-nested.mig.zst"), load("qemu7.2-linux6.1-nested.mig.zst")
    )
    masked = found.masked()
    assert {one.path for one in masked["l1-save-leftovers"]} == {
        f"vcpu0.nested.l1_save.{name}" for name in ("dr6", "dr7", "g_pat")
    }
    groups = {one.path.split(".")[3] for one in masked["vmload-group"]}
    assert groups == {"fs", "gs", "ldtr", "tr"}
    (flags,) = masked["hflags2"]
    assert (flags.a.value, flags.b.value) == (1, 0x101)  # type: ignore[union-attr]
    assert not [one for one in found.counting if ".control." in one.path]
    assert ("section:ps2kbd.common", "parent_obj") in found.renamed
    assert "configuration.machine" in counting(found)
    only = {one.path: one.change for one in found.differences if one.b and not one.a}
    assert only["section:pckbd.kbd.pckbd/extended_state"] is Change.ONLY_B


def test_nested_paging_shows_in_the_control_area() -> None:
    found = compare(
        load("qemu10.0-linux6.12-nested.mig.zst"), load("qemu10.0-linux6.12-nested-npt.mig.zst")
    )
    changed = {one.path: one for one in found.counting}
    one = changed["vcpu0.nested.control.nested_ctl"]
    assert one.group == "vcpu0 nested"
    assert (one.a.value, one.b.value) == (0, 1)  # type: ignore[union-attr]
    assert "vcpu0.nested.control.nested_cr3" in changed


def test_every_byte_of_the_vmcb_is_compared(sample: bytes) -> None:
    machine = load("qemu10.0-linux6.12-nested-npt.mig.zst")
    nested = machine.vcpus[0].nested
    assert nested is not None
    for at in range(0, 4096, 31):
        data = bytearray(sample)
        data[nested.vmcb_offset + at] ^= 0x11
        other = read_machine(read_stream(BytesSource(bytes(data))))
        (one,) = compare(machine, other, ()).differences
        assert one.a is not None
        assert one.a.offset <= nested.vmcb_offset + at < one.a.end


def test_a_vcpu_without_nested_state() -> None:
    machine = load("qemu10.0-linux6.12-nested-npt.mig.zst")
    from dataclasses import replace

    bare = replace(machine, vcpus=(replace(machine.vcpus[0], nested=None),))
    (one,) = [one for one in compare(machine, bare).differences if "nested" in one.group]
    assert (one.path, one.change) == ("vcpu0.nested", Change.ONLY_A)
    alone = compare(machine, replace(machine, vcpus=())).differences
    assert [one.path for one in alone if one.group == "vcpu0"] == ["vcpu0"]


def test_arrays_become_ranges() -> None:
    layout = field("lvt", "uint32", 4, array_len=6)
    numbers = [1, 2, 3, 4, 5, 6]
    a = b"".join(n.to_bytes(4, "big") for n in numbers)
    b = b"".join(n.to_bytes(4, "big") for n in [1, 9, 9, 4, 5, 7])
    found = compare(made(section("dev", a, layout)), made(section("dev", b, layout)))
    assert paths(found) == ["section:dev.lvt[1..2]", "section:dev.lvt[5]"]
    first, second = found.differences
    assert first.a is not None
    assert second.b is not None
    assert first.a.value == (2, 3)
    assert second.b.value == 7
    assert second.b.offset - first.a.offset == 16


BUFFERS = st.lists(st.tuples(st.sampled_from(b"\0\0\1"), st.integers(1, 4000)), max_size=8)


@settings(max_examples=30)
@given(BUFFERS, BUFFERS, st.booleans())
def test_runs_of_differing_elements(
    one: list[tuple[int, int]], two: list[tuple[int, int]], as_tuples: bool
) -> None:
    a, b = (b"".join(bytes((value,)) * (count * 9) for value, count in side) for side in (one, two))
    short = min(len(a), len(b))
    unlike = [at for at in range(max(len(a), len(b))) if at >= short or a[at] != b[at]]
    found = list(differing(tuple(a), tuple(b)) if as_tuples else differing(a, b))
    assert [at for first, last in found for at in range(first, last + 1)] == unlike
    for (_, last), (first, _) in pairwise(found):
        assert first > last + 1 or first == short


def test_very_many_runs_cost_no_memory() -> None:
    size = 1 << 20
    buffer = field("buf", "buffer", size)
    a = made(section("dev", bytes(size), buffer))
    b = made(section("dev", b"\1\0" * (size // 2 - 1) + bytes(2), buffer))
    a_values, b_values = find(a, "section:dev"), find(b, "section:dev")
    assert a_values.value.size == b_values.value.size == size
    tracemalloc.start()
    try:
        found = compare(a, b).differences
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 1001
    assert found[-1].path == f"section:dev.buf[2000..{size - 4}]"
    assert most <= 9 * size  # a part of it for the values themselves


def test_structures_in_arrays_are_folded() -> None:
    inner = {"vmsd_name": "s", "version": 1, "fields": [field("x", "uint8", 1)]}
    layout = field("t", "struct", 1, array_len=8, struct=inner)
    a, b = bytes(8), bytes((0, 1, 1, 1, 0, 2, 0, 0))
    found = compare(made(section("dev", a, layout)), made(section("dev", b, layout)))
    assert paths(found) == ["section:dev.t[1..3].x", "section:dev.t[5].x"]


def test_lengths_and_widths() -> None:
    a = made(section("dev", bytes(6), field("b", "buffer", 4), field("n", "uint16", 2)))
    b = made(section("dev", bytes(6), field("b", "buffer", 2), field("n", "uint32", 4)))
    tail, wide = compare(a, b).differences
    assert (tail.path, tail.change) == ("section:dev.b[2..3]", Change.ONLY_A)
    assert (wide.path, wide.change) == ("section:dev.n", Change.SIZE)


def test_sections_by_name_instance_and_occurrence() -> None:
    layout = field("x", "uint8", 1)
    one, two = section("one", b"\1", layout), section("two", b"\2", layout, instance=3)
    assert compare(made(one, two), made(two, one)).differences == ()
    twice = made(one, section("one", b"\5", layout))
    found = compare(twice, made(one))
    assert [(d.group, d.change) for d in found.differences] == [("sections", Change.ONLY_A)]
    newer = section("one", b"\1", layout, version=2)
    (version,) = compare(made(one), made(newer)).differences
    assert (version.group, version.path) == ("sections", "section:one version")


def test_renamed_fields_are_compared() -> None:
    a = section("dev", b"\1\2", field("old", "uint8", 1), field("x", "uint8", 1))
    b = section("dev", b"\7\2", field("new", "uint8", 1), field("x", "uint8", 1))
    found = compare(made(a), made(b))
    assert paths(found) == ["section:dev.old"]
    assert found.renamed == (("section:dev.old", "new"),)
    wider = section("dev", b"\0\7\2", field("new", "uint16", 2), field("x", "uint8", 1))
    assert {one.change for one in compare(made(a), made(wider)).differences} == {
        Change.ONLY_A,
        Change.ONLY_B,
    }


def test_ram_blocks_and_configuration() -> None:
    a = made(blocks={"pc.ram": 65536, "rom": 4096})
    b = made(blocks={"pc.ram": 131072}, config=builders.configuration("pc-other"))
    found = {one.path: one for one in compare(a, b).differences}
    assert found.keys() == {"configuration.machine", "ram.pc.ram", "ram.rom"}
    assert found["ram.rom"].change is Change.ONLY_A


def test_sections_that_nothing_describes() -> None:
    a = made(section("dev", b"abcd", field("x", "uint8", 4)), describe=False)
    b = made(section("dev", b"abXY", field("x", "uint8", 4)), describe=False)
    assert paths(compare(a, b)) == ["section:dev[2..3]"]


# Masks.


def number(value: int, kind: str = "uint64") -> Value:
    return Value("x", kind, 0, 8, value)


@pytest.mark.parametrize(
    ("pattern", "path", "covered"),
    [
        ("section:apic", "section:apic.lvt[3]", True),
        ("section:apic", "section:apic2.lvt", False),
        ("*.rcx", "vcpu0.registers.rcx", True),
        ("vcpu*.nested.control.next_rip", "vcpu12.nested.control.next_rip", True),
        ("section:a.b[3]", "section:a.b[3].c", True),
        ("section:a.b[3]", "section:a.b[33]", False),
        ("a.c", "abc", False),
    ],
)
def test_patterns(pattern: str, path: str, covered: bool) -> None:
    masks = Masks(user_masks([pattern]))
    assert (masks.find(path, number(1), number(2)) is not None) is covered


def test_patterns_cannot_be_slow() -> None:
    masks = Masks(user_masks(["*" * 5000 + "x"]))
    assert masks.find("a" * 5000, None, None) is None


def test_elements_are_masked_one_by_one() -> None:
    layout = field("cmos_data", "buffer", 128)
    a, b = bytes(128), bytes([1] * 12) + bytes(116)
    found = compare(
        made(section("mc146818rtc", a, layout)), made(section("mc146818rtc", b, layout))
    )
    assert [
        (one.path.rpartition(".")[2], one.mask and one.mask.id) for one in found.differences
    ] == [
        ("9]", "rtc"),
        ("11]", None),
    ]


def test_bits_and_timers() -> None:
    bits = Masks((Mask("m", "x", "", "", ignore=0xF),))
    assert bits.find("x", number(0x10), number(0x1F)) is not None
    assert bits.find("x", number(0x10), number(0x2F)) is None
    timers = Masks((Mask("m", "x", "", "", type="timer"),))
    assert timers.find("x", number(5, "timer"), number(6, "timer")) is not None
    assert timers.find("x", number(5, "timer"), number(-1, "timer")) is None
    assert timers.find("x", number(5), number(6)) is None


def test_ranges_in_patterns() -> None:
    (some,) = user_masks(["a[2..4]"])
    assert [index for index in range(6) if selects(some, index)] == [2, 3, 4]
    assert all(selects(user_masks(["a[*]"])[0], index) for index in range(3))
    assert not selects(user_masks(["a"])[0], 0)


def test_no_mask_covers_what_kvm_restores() -> None:
    # L1's registers and what L1 asked for L2 must never be masked whole.
    from qemu_svm.nested.groups import L1_STATE

    masks = Masks(DEFAULT)
    one, other = number(0), number((1 << 64) - 1)
    for name in L1_STATE:
        assert masks.find(f"vcpu0.nested.l1_save.{name}", one, other) is None
    for name in ("intercepts", "asid", "nested_ctl", "nested_cr3", "int_ctl", "tsc_offset"):
        assert masks.find(f"vcpu0.nested.control.{name}", one, other) is None
    for name in ("rip", "cr3", "efer", "hflags", "hflags2"):
        assert masks.find(f"vcpu0.registers.{name}", one, other) is None


def test_every_mask_says_why() -> None:
    for mask in DEFAULT:
        assert mask.reason
        assert mask.source.startswith(("Linux", "QEMU"))


def test_the_documentation_lists_every_mask() -> None:
    text = (Path(__file__).parents[2] / "docs/diff.md").read_text()
    for mask in DEFAULT:
        assert f"`{mask.id}`" in text
