"""Where RAM lies, held against QEMU's own dump of the same machine."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.machine import Machine, read_machine
from qemu_svm.memory.evidence import Affinity, srat
from qemu_svm.memory.layout import Use, backed, layout, ram_ranges
from qemu_svm.source.plain import BytesSource
from qemu_svm.stream import read_stream
from tests.memory.support import TRUTHS, loads, truth_of
from tests.support import builders
from tests.support.builders import Section, configuration, stream

_LARGE = 1 << 29  # too much zero to hash in every run


@pytest.mark.parametrize("name", TRUTHS)
def test_ranges_are_those_of_qemus_dump(name: str) -> None:
    with truth_of(name) as (memory, truth):
        found = [(one.start, one.size) for one in memory.layout.ranges]
        assert found == [(start, size) for start, size, _ in loads(truth)]


@pytest.mark.parametrize("name", TRUTHS)
def test_memory_is_that_of_qemus_dump(name: str) -> None:
    with truth_of(name) as (memory, truth):
        for start, size, digest in loads(truth):
            if size <= _LARGE:
                assert hashlib.sha256(memory.read(start, size)).hexdigest() == digest


@pytest.mark.parametrize("name", TRUTHS)
def test_main_memory_needs_no_content_of_ram(name: str) -> None:
    with truth_of(name) as (memory, _):
        main = [one for one in memory.layout.ranges if one.use is Use.RAM]
        assert all(backed(memory.machine, one.start, one.size) for one in main)
        total = sum(end - start for start, end in ram_ranges(memory.machine))
        blocks = {one.block for one in main}
        assert total == sum(memory.machine.blocks[block].used_length for block in blocks)


def test_every_range_says_why_it_is_there() -> None:
    with truth_of("pc-numa-split-10.0") as (memory, _):
        assert {one.reason for one in memory.layout.ranges} == {"SRAT", "firmware ends at 4 GiB"}
    with truth_of("pc-long-mode-7.2") as (memory, _):
        found = memory.layout
        assert [one.reason for one in found.ranges if one.use is Use.RAM] == ["CMOS", "CMOS"]
        assert not found.assumptions
    with truth_of("pc-vga-7.2") as (memory, _):
        video = next(one for one in memory.layout.ranges if one.use is Use.VIDEO)
        assert video.reason == "BAR 0 of vga"
    with truth_of("microvm-no-rtc-7.2") as (memory, _):
        assert "rules of microvm" in memory.layout.assumptions[0]


def test_smram_is_under_the_vga_window() -> None:
    with truth_of("pc-vga-7.2") as (memory, _):
        hidden = memory.layout.smram
        assert [(one.start, one.end) for one in hidden] == [(0xA0000, 0xC0000)]
        assert memory.physical.state(0xA0000) == "no-ram"
        assert memory.smm.state(0xA0000) == "mapped"
        assert memory.smm.read(0xC0000, 64) == memory.read(0xC0000, 64)


def cmos(low: int, high: int) -> Section:
    data = bytearray(128)
    data[0x30:0x32] = min((low - (1 << 20)) >> 10, 0xFFFF).to_bytes(2, "little")
    data[0x34:0x36] = max(low - (16 << 20), 0).__rshift__(16).to_bytes(2, "little")
    data[0x5B:0x5E] = (high >> 16).to_bytes(3, "little")
    fields = [{"name": "cmos_data", "type": "buffer", "size": 128}]
    return Section("mc146818rtc", bytes(data), fields)


def machine(name: str, blocks: dict[str, int], *sections: Section) -> Machine:
    data = stream(sections, blocks=blocks, config=configuration(name))
    return read_machine(read_stream(BytesSource(data)))


@given(st.integers(17, 0xDFFF), st.integers(0, 1 << 16))
def test_the_cmos_says_where_the_hole_is(low: int, high: int) -> None:
    low, high = low << 16, high << 16
    if low < 1 << 24:
        low = 1 << 24
    one = machine("pc-i440fx-7.0", {"pc.ram": low + high}, cmos(low, high))
    expected = [(0, low)] + ([(1 << 32, (1 << 32) + high)] if high else [])
    assert ram_ranges(one) == expected


def test_a_cmos_that_the_guest_has_changed_is_not_believed() -> None:
    one = machine("pc-i440fx-7.2", {"pc.ram": 1 << 28}, cmos(1 << 26, 0))
    found = layout(one)
    assert [(r.start, r.size) for r in found.ranges] == [(0, 1 << 28)]
    assert "assumed by the rules of pc-i440fx-7.2" in found.assumptions[0]


def test_a_huge_guest_is_moved_past_the_hypertransport_hole() -> None:
    low, high = 3 << 30, 1021 << 30
    blocks = {"pc.ram": low + high}
    old = machine("pc-i440fx-7.0", blocks, cmos(low, high))
    assert ram_ranges(old)[1] == (1 << 32, (1 << 32) + high)
    new = machine("pc-i440fx-7.1", blocks, cmos(low, high))
    assert ram_ranges(new)[1] == (1 << 40, (1 << 40) + high)
    assert "1 TiB" in layout(new).ranges[1].reason


def test_libvirts_nodes_are_taken_by_number() -> None:
    blocks = {"ram-node1": 64 << 20, "ram-node0": 32 << 20}
    found = layout(machine("pc-i440fx-7.2", blocks, cmos(96 << 20, 0)))
    assert [(one.start, one.size, one.block) for one in found.ranges] == [
        (0, 32 << 20, 1), (32 << 20, 64 << 20, 0),
    ]  # fmt: skip


def table(*entries: tuple[int, int, int, int]) -> bytes:
    body = b"".join(
        struct.pack("<BBIHQQIIQ", 1, 40, node, 0, base, size, 0, flags, 0)
        for node, base, size, flags in entries
    )
    head = b"SRAT" + (48 + len(body)).to_bytes(4, "little") + bytes(40)
    return head + body


def test_the_srat_is_found_among_other_tables() -> None:
    found = srat(b"SRAT\1\0\0\0" + bytes(60) + table((0, 0, 4096, 1), (1, 1 << 30, 4096, 3)))
    assert found == [
        Affinity(0, 0, 4096, hotplug=False),
        Affinity(1, 1 << 30, 4096, hotplug=True),
    ]


@given(st.binary(max_size=200))
def test_any_bytes_may_stand_where_tables_should(data: bytes) -> None:
    srat(b"SRAT" + data)
    srat(data)


@given(
    st.dictionaries(st.sampled_from(["pc.ram", "n0", "n1", "mem", "0:1/x"]), st.integers(1, 64)),
    st.binary(min_size=128, max_size=128),
    st.sampled_from(["pc-q35-7.2", "microvm", "isapc", "pc-i440fx-1.3", "none", ""]),
)
def test_ranges_never_overlap(blocks: dict[str, int], data: bytes, name: str) -> None:
    fields: list[dict[str, Any]] = [{"name": "cmos_data", "type": "buffer", "size": 128}]
    sizes = {block: many * builders.PAGE for block, many in blocks.items()}
    one = machine(name, sizes, Section("mc146818rtc", data, fields))
    found = layout(one)
    ends = 0
    for place in found.ranges:
        assert place.start >= ends
        ends = place.end
        assert place.offset + place.size <= one.blocks[place.block].used_length
