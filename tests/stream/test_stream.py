"""Whole streams: framing, both walks, cuts, damage."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import (
    LimitExceeded,
    Malformed,
    SourceError,
    StreamError,
    Truncated,
    Unsupported,
)
from qemu_svm.limits import Limits
from qemu_svm.machine import Machine, read_machine
from qemu_svm.source import BytesSource, open_source
from qemu_svm.stream import Kind, RamPages, Stream, Walk, read_stream
from qemu_svm.stream.constants import RecordType
from qemu_svm.stream.reader import Reader
from qemu_svm.stream.vmstate import builtin
from qemu_svm.stream.vmstate.decode import decode
from qemu_svm.stream.vmstate.description import Description
from qemu_svm.stream.vmstate.lend import description_of
from tests.conftest import capture_bytes
from tests.support import builders
from tests.support.builders import PAGE, Section, page, zero


def read(data: bytes, walk: Walk = Walk.QUICK, **limits: Any) -> Stream:
    return read_stream(BytesSource(data), Limits(**limits), walk)


def same(one: Stream, other: Stream) -> bool:
    return all(
        getattr(one, name) == getattr(other, name)
        for name in ("records", "blocks", "pages", "configuration", "complete", "described")
    )


def u32(name: str) -> dict[str, Any]:
    return {"name": name, "type": "uint32", "size": 4}


TWO = [
    Section("timer", b"\0\0\0\1", [u32("ticks")]),
    Section("0000:00:01.0/dev", b"\0\0\0\2\0\0\0\3", [u32("a"), u32("b")], instance=1),
]
RAM = [
    page(0, b"one", "pc.ram") + zero(PAGE) + zero(2 * PAGE),
    b"",
    zero(0, "pc.rom") + page(PAGE, b"two", "pc.ram"),
]
BLOCKS = {"pc.ram": 16 * PAGE, "pc.rom": PAGE}


# Real captures.


def test_captures_are_sound(machine: Machine, capture: dict[str, Any]) -> None:
    stream = machine.stream
    assert stream.complete
    assert stream.problems == ()
    assert stream.source.size() == capture["size"]
    assert stream.description_source == "embedded"
    assert machine.name == capture["provenance"]["machine"]
    assert stream.blocks[0].name == "pc.ram"
    assert stream.blocks[0].used_length == 32 << 20


def test_records_tile_the_capture(machine: Machine, capture: dict[str, Any]) -> None:
    at = 8
    for record in machine.stream.records:
        assert record.offset == at
        at = record.end
    assert at == capture["size"]


def test_both_walks_agree_on_captures(machine: Machine) -> None:
    linear = read_stream(machine.stream.source, walk=Walk.LINEAR)
    assert same(machine.stream, linear)


def test_stepping_over_ram_changes_nothing_else(machine: Machine) -> None:
    whole = machine.stream
    quick = read_stream(whole.source, Limits(ram_walk_bytes=0))
    skipped = [record for record in quick.records if record.kind is Kind.SKIPPED]
    assert len(skipped) == 1
    inside = [r for r in whole.records if skipped[0].offset <= r.offset < skipped[0].end]
    assert {r.name for r in inside} <= {"ram", "SWITCHOVER_START"}
    assert [r for r in whole.records if r not in inside] == [
        r for r in quick.records if r.kind is not Kind.SKIPPED
    ]
    assert quick.pages is None
    assert quick.complete
    assert same(read_stream(whole.source, Limits(ram_walk_bytes=0), Walk.RAM), whole)


def test_pages_cover_the_guest(machine: Machine) -> None:
    pages = machine.stream.pages
    assert pages is not None
    total = sum(block.used_length for block in machine.blocks) // machine.stream.page_size
    assert pages.normal + pages.zero >= total


# Streams made here.


@pytest.mark.parametrize("sections", [TWO, []])
@pytest.mark.parametrize("empty", [False, True])
def test_what_is_read_does_not_grow_with_the_guest(sections: list[Section], empty: bool) -> None:
    looks = []
    for pages in (1200, 4000):
        rest = [zero(n * PAGE) if empty else page(n * PAGE, b"x") for n in range(1, pages)]
        part = zero(0, "pc.ram") + b"".join(rest)
        data = builders.stream(sections, [part], {"pc.ram": pages * PAGE})
        source = builders.Counting(data)
        stream = read_stream(source, Limits(ram_walk_bytes=0))
        assert stream.complete
        assert stream.problems == ()
        assert [r.kind for r in stream.records].count(Kind.SKIPPED) == 1
        looks.append((source.calls, source.bytes))
    assert looks[0][0] == looks[1][0]
    assert looks[1][1] - looks[0][1] < 256 << 10  # looks of a fixed size, cut at the end


def test_without_devices_ram_has_to_end_before_the_eof() -> None:
    # A section that nothing describes stands there: read front to back.
    data = builders.stream([], [page(0, b"x", "pc.ram")], BLOCKS)
    at = data.rindex(builders.description([])) - 1
    extra = builders.named(RecordType.FULL, 9, "unknown", 0, 1, b"payload")
    stream = read_stream(BytesSource(data[:at] + extra + data[at:]), Limits(ram_walk_bytes=0))
    assert stream.complete
    assert [r.name for r in stream.sections()] == ["unknown"]
    assert not [r for r in stream.records if r.kind is Kind.SKIPPED]


@pytest.mark.parametrize("footers", [True, False])
@pytest.mark.parametrize("walk", Walk)
def test_made_stream(footers: bool, walk: Walk) -> None:
    stream = read(builders.stream(TWO, RAM, BLOCKS, footers=footers), walk)
    assert stream.complete
    assert stream.problems == ()
    assert [s.name for s in stream.sections()] == ["timer", "0000:00:01.0/dev"]
    assert stream.pages == RamPages(normal=2, zero=3)
    values = [stream.values(record) for record in stream.sections()]
    assert [[c.value for c in v.children] for v in values if v] == [[1], [2, 3]]


def test_configuration_and_its_subsections() -> None:
    config = builders.configuration(
        "pc-q35-9.0",
        builders.subsection("configuration/target-page-bits", 1, b"\0\0\0\x0c"),
        builders.subsection("configuration/capabilities", 1, b"\0\0\0\2" + b"\3abc" + b"\4wxyz"),
        builders.subsection("configuration/uuid", 1, bytes(range(16))),
    )
    found = read(builders.stream(TWO, RAM, BLOCKS, config=config)).configuration
    assert found is not None
    assert (found.machine, found.page_bits) == ("pc-q35-9.0", 12)
    assert found.capabilities == ("abc", "wxyz")
    assert found.uuid == bytes(range(16))


def test_small_target_pages() -> None:
    # arm's vexpress has pages of 1 KiB and only the description says so.
    part = builders.word(0 | 8) + builders.counted("pc.ram") + bytes(1024)
    part += builders.word(1024 | 8 | 0x20) + bytes(1024)
    data = builders.stream(TWO, [part]).replace(b'"page_size": 4096', b'"page_size": 1024')
    for walk in Walk:
        stream = read(data, walk)
        assert stream.problems == ()
        assert stream.page_size == 1024
        assert stream.pages == RamPages(normal=2)


def test_without_configuration() -> None:
    stream = read(builders.stream(TWO, RAM, BLOCKS, config=b""))
    assert stream.configuration is None
    assert stream.complete


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (builders.subsection("configuration/new", 1, b""), Unsupported),
        (builders.subsection("configuration/target-page-bits", 1, b"\0\0\0\xff"), Malformed),
    ],
)
def test_odd_configurations(body: bytes, error: type[StreamError]) -> None:
    stream = read(builders.stream(TWO, config=builders.configuration("m", body)))
    assert isinstance(stream.problems[0], error)
    assert stream.problems[0].offset > 8


@pytest.mark.parametrize("flags", [0x003, 0x00C, 0x028 | 0x010, 0x400])
@pytest.mark.parametrize("walk", Walk)
def test_impossible_ram_records_are_told(flags: int, walk: Walk) -> None:
    # What was read so far stays, and so does what comes behind the damage.
    odd = zero(0, "pc.ram") + builders.word(flags | PAGE) + builders.counted("pc.ram") + bytes(40)
    data = builders.stream(TWO, [odd])
    stream = read(data, walk)
    first = stream.problems[0]
    assert isinstance(first, Malformed)
    assert first.section == "ram"
    assert stream.blocks[0].name == "pc.ram"
    assert [s.name for s in stream.sections()] == ["timer", "0000:00:01.0/dev"]


def postcopy(sections: list[Section]) -> bytes:
    """The shape of a postcopy stream: devices inside a package, RAM behind it."""
    head = builders.header() + builders.configuration() + builders.command(1)
    advise = builders.command(3, builders.word(PAGE) + builders.word(PAGE))
    start = builders.named(
        RecordType.START, 2, "ram", 0, 4, builders.block_list(BLOCKS) + builders.EOS
    )
    part = builders.referring(RecordType.PART, 2, RAM[0] + builders.EOS)
    devices = b"".join(
        builders.named(RecordType.FULL, number, s.name, s.instance, s.version, s.payload)
        for number, s in enumerate(sections, 10)
    )
    package = builders.command(4) + devices + builders.command(2, b"\0\0\0\3")
    package += builders.command(5)
    packaged = builders.command(7, len(package).to_bytes(4, "big")) + package
    end = builders.referring(RecordType.END, 2, builders.EOS)
    return head + advise + start + part + packaged + builders.command(2, bytes(4)) + end + b"\0"


def test_postcopy_packages_are_read_like_streams() -> None:
    stream = read(postcopy(TWO))
    assert stream.complete
    assert stream.problems == ()
    names = [r.name for r in stream.records if r.kind is Kind.COMMAND]
    assert names == [
        *("OPEN_RETURN_PATH", "POSTCOPY_ADVISE", "PACKAGED", "POSTCOPY_LISTEN", "PING"),
        *("POSTCOPY_RUN", "PING"),
    ]
    assert [s.name for s in stream.sections()] == ["timer", "0000:00:01.0/dev"]
    bad = builders.header() + builders.configuration() + builders.command(7, b"abc")
    assert "PACKAGED" in str(read(bad).problems[0])


def test_unknown_commands_are_stepped_over() -> None:
    data = builders.header() + builders.configuration() + builders.command(99, b"abc") + b"\0"
    stream = read(data)
    assert stream.complete
    assert stream.records[1].name == "command 99"


@pytest.mark.parametrize(
    ("total", "blocks"),
    [(PAGE, {"a": 2 * PAGE}), (PAGE * 10**6, {f"b{i}": 1 for i in range(5000)})],
)
def test_block_lists_that_do_not_add_up(total: int, blocks: dict[str, int]) -> None:
    entries = builders.block_list(blocks)[8:]
    start = builders.word(total | 4) + entries + builders.EOS
    data = builders.header() + builders.named(RecordType.START, 1, "ram", 0, 4, start)
    assert "do not add up" in str(read(data).problems[0])


def test_pages_of_unknown_blocks() -> None:
    stream = read(builders.stream(TWO, [page(0, b"", "nowhere")]), Walk.LINEAR)
    assert "nowhere" in str(stream.problems[0])


def test_sections_nobody_describes_are_found_by_their_footers() -> None:
    data = builders.stream(TWO, RAM, BLOCKS, describe=False)
    stream = read(data)
    assert stream.complete
    assert stream.description_source == "none"
    assert [(s.name, s.payload_size, s.opaque) for s in stream.sections()] == [
        ("timer", 4, True),
        ("0000:00:01.0/dev", 8, True),
    ]
    assert stream.values(next(stream.sections())) is None


def cpu_at(data: bytes) -> Any:
    (vcpu,) = read_machine(read(data)).vcpus
    return vcpu


def test_a_capture_without_its_description(capture: dict[str, Any]) -> None:
    # Cut behind the last section, as a crash of the saving QEMU leaves it.
    whole = capture_bytes(capture["file"])
    records = read(whole).records
    end = next(r for r in records if r.kind is Kind.EOF).offset
    full, guessed = cpu_at(whole), cpu_at(whole[:end])
    assert (full.described, guessed.described) == ("embedded", "builtin")
    assert {k: v.value for k, v in full.registers.items()} == {
        k: v.value for k, v in guessed.registers.items()
    }
    assert full.registers["cr3"].offset == guessed.registers["cr3"].offset
    assert full.nested == guessed.nested
    assert dict(full.segments) == dict(guessed.segments)
    small = [s for s in read(whole[:end]).sections() if s.described == "builtin"]
    assert {s.name for s in small} == {"cpu", "timer", "cpu_common", "kvmclock", "globalstate"}


def test_built_in_layouts_are_those_of_the_descriptions(machine: Machine) -> None:
    stream = machine.stream
    for record in stream.sections():
        for device in builtin.candidates(
            record.name or "", record.instance_id or 0, record.version_id or 0
        ):
            found = decode(Reader(stream.source, record.payload), device.layout, "x")
            ours = {path: (v.offset, v.value) for path, v in found.walk() if not v.children}
            theirs = stream.values(record)
            assert theirs is not None
            if len(ours) == sum(not v.children for _, v in theirs.walk()):
                known = {p: (v.offset, v.value) for p, v in theirs.walk() if not v.children}
                if record.name == "cpu":
                    assert ours == known
            break


def test_a_borrowed_description(machine: Machine, capture: dict[str, Any]) -> None:
    whole = capture_bytes(capture["file"])
    end = next(r for r in machine.stream.records if r.kind is Kind.EOF).offset
    lender = description_of(machine.stream.source)
    stream = read_stream(BytesSource(whole[:end]), borrowed=lender)
    assert stream.description_source == "borrowed"
    assert {s.described for s in stream.sections()} == {"borrowed"}
    assert [stream.values(s) for s in stream.sections()] == [
        machine.stream.values(s) for s in machine.stream.sections()
    ]
    # Another QEMU's is taken as far as it fits, without a word about the rest.
    other = capture_bytes("qemu5.2-linux5.10-nested.mig.zst")
    foreign = read_stream(BytesSource(whole[:end]), borrowed=description_of(BytesSource(other)))
    assert len(foreign.problems) == 1
    assert cpu_at(whole[:end]).nested == read_machine(foreign).vcpus[0].nested


def test_what_cannot_lend() -> None:
    with pytest.raises(SourceError, match="no description to lend"):
        description_of(BytesSource(builders.stream(TWO, describe=False)))
    with pytest.raises(SourceError, match="has no devices"):
        description_of(BytesSource(b'{"page_size": 4096}'))
    found = description_of(BytesSource(builders.description(TWO)[5:]))
    assert isinstance(found, Description)
    assert [device.name for device in found.devices] == ["timer", "0000:00:01.0/dev"]


def test_damage_is_stepped_over(sample: bytes) -> None:
    records = read(sample).records
    apic = next(r for r in records if r.name == "apic")
    eof = next(r for r in records if r.kind is Kind.EOF)
    data = bytearray(sample[: eof.offset])
    data[apic.offset : apic.offset + 6] = b"\xff" * 6  # its header
    stream = read(bytes(data))
    first = stream.problems[0]
    assert (type(first), first.offset) == (Malformed, apic.offset)
    assert first.hint is not None
    assert "bytes lost" in first.hint
    lost = next(r for r in stream.records if r.kind is Kind.LOST)
    assert lost.offset == apic.offset
    names = [s.name for s in stream.sections()]
    assert "kvmclock" in names
    assert "globalstate" in names


def test_recoveries_are_limited() -> None:
    junk = (b"\xff" * 20 + builders.footer(1) + b"\x04\0\0\0\1\1x") * 50
    data = builders.header() + builders.configuration() + junk
    stream = read(data, recoveries=3)
    assert len(stream.problems) <= 5


def test_an_unknown_section_in_parts_without_footers() -> None:
    data = builders.stream(TWO, RAM, BLOCKS, describe=False, footers=False)
    start = builders.named(RecordType.START, 7, "other", 0, 1, b"abc", footers=False)
    at = data.index(builders.referring(RecordType.END, 2, builders.EOS, footers=False))
    stream = read(data[:at] + start + data[at:])
    assert not stream.complete
    assert isinstance(stream.problems[0], Unsupported)
    assert stream.problems[0].section == "other"


def test_a_section_longer_than_described() -> None:
    # The capability quirk: sizes of the first element times two.
    strings = b"\x03abc\x01z"
    fields = [{"name": "c", "type": "capability", "size": 4, "array_len": 2}]
    for walk in Walk:
        stream = read(builders.stream([*TWO, Section("caps", strings, fields)]), walk)
        assert stream.problems == ()
        value = stream.values(list(stream.sections())[2])
        assert value is not None
        assert [c.value for c in value.children[0].children] == ["abc", "z"]


def test_a_wrong_description_is_told_and_stepped_over() -> None:
    liar = Section("liar", b"\0" * 9, [u32("only")])
    stream = read(builders.stream([liar, *TWO], RAM, BLOCKS))
    assert stream.complete
    assert [type(p) for p in stream.problems] == [Malformed]
    assert [s.name for s in stream.sections()] == ["liar", "timer", "0000:00:01.0/dev"]
    assert next(stream.sections()).opaque


def test_two_sections_of_one_name_and_instance() -> None:
    # The ISA IDE ports of isapc are both called isa-ide 0.
    twins = [
        Section("isa-ide", b"\0\0\0\1", [u32("a")]),
        Section("isa-ide", b"\0\0\0\2\0\0\0\3", [u32("a"), u32("b")]),
    ]
    for walk in Walk:
        stream = read(builders.stream(twins), walk)
        assert stream.problems == ()
        assert [s.payload_size for s in stream.sections()] == [4, 8]


def test_early_sections_come_before_ram() -> None:
    early, late = TWO
    data = builders.stream(TWO, RAM, BLOCKS)
    section = builders.named(RecordType.FULL, 10, early.name, 0, 1, early.payload)
    data = data.replace(section, b"", 1)
    at = len(builders.header() + builders.configuration())
    data = data[:at] + section + data[at:]
    quick, linear = read(data, ram_walk_bytes=0), read(data, Walk.LINEAR)
    assert quick.complete
    assert [s.name for s in quick.sections()] == [early.name, late.name]
    assert Kind.SKIPPED in [r.kind for r in quick.records]
    assert [s.offset for s in quick.sections()] == [s.offset for s in linear.sections()]


def test_padding_and_junk_behind_the_end() -> None:
    data = builders.stream(TWO, RAM, BLOCKS)
    assert read(data + bytes(100_000)).problems == ()
    stream = read(data + b"junk")
    assert (stream.problems, stream.trailing) == ((), len(data))
    undescribed = builders.stream(TWO, RAM, BLOCKS, describe=False)
    (problem,) = read(undescribed + b"junk").problems
    assert "trailing data" in str(problem)
    assert problem.offset == len(undescribed)
    assert len(list(stream.sections())) == 2
    assert not any(s.opaque for s in stream.sections())


class Padded(BytesSource):
    """A stream on a disk of a terabyte that is zero behind it."""

    read = 0

    def size(self) -> int:
        return 1 << 40

    def read_at(self, offset: int, size: int) -> bytes:
        self.read += size
        return super().read_at(offset, size).ljust(min(size, self.size() - offset), b"\0")


def test_a_terabyte_of_zeros_is_not_read() -> None:
    source = Padded(builders.stream(TWO, RAM, BLOCKS))
    stream = read_stream(source)
    assert (stream.complete, stream.problems) == (True, ())
    assert len(list(stream.sections())) == 2
    assert source.read < 256 << 20


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the input is empty"),
        (b"QEV", "ends inside the stream header"),
        (b"LibvirtQemudSave" + bytes(80), "libvirt"),
        (b"QFI\xfb" + bytes(80), "qcow2"),
        (b"\x7fELF" + bytes(80), "ELF"),
        (b"nothing like it", "not a QEMU migration stream"),
        (b"QEVM\0\0\0\2" + bytes(8), "version"),
    ],
)
def test_what_is_no_stream(data: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        read(data)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"\x42", "unknown record type"),
        (builders.footer(3), "footer without a preceding section"),
        (builders.referring(RecordType.PART, 77, builders.EOS), "never started"),
        (b"\x06\xff\xff\xff\xff", "unknown type|larger than the limit"),
    ],
)
def test_records_that_cannot_be(record: bytes, message: str) -> None:
    stream = read(builders.header() + builders.configuration() + record + bytes(50))
    assert len(stream.problems) == 1
    assert __import__("re").search(message, str(stream.problems[0]))
    assert stream.problems[0].offset == len(builders.header() + builders.configuration())


def test_wrong_footers() -> None:
    data = builders.stream(TWO, RAM, BLOCKS)
    wrong = data.replace(builders.footer(11), builders.footer(12))
    stream = read(wrong)
    assert any("footer" in str(p) or "description" in str(p) for p in stream.problems)


# Cuts and damage.


def test_every_cut_of_a_made_stream() -> None:
    data = builders.stream(TWO, RAM, BLOCKS)
    whole = read(data, Walk.LINEAR)
    eof = next(r for r in whole.records if r.kind is Kind.EOF)
    for cut in range(8, len(data)):
        stream = read(data[:cut])
        if cut == eof.end:
            # Nothing tells this from a stream that does not describe itself.
            assert stream.complete
            continue
        assert not stream.complete
        assert [type(p) for p in stream.problems] == [Truncated]
        assert stream.problems[0].offset == cut
        before = [r for r in whole.records if r.end <= cut]
        assert [(r.offset, r.size, r.name) for r in stream.records] == [
            (r.offset, r.size, r.name) for r in before
        ]


def test_cuts_of_a_capture(sample: bytes) -> None:
    whole = read(sample)
    places = {r.offset + d for r in whole.records for d in (0, 1, 9)} | {
        r.end - 1 for r in whole.records
    }
    eof = next(r for r in whole.records if r.kind is Kind.EOF)
    for cut in sorted(places - {8, eof.end}):
        stream = read(sample[:cut])
        assert [(type(p), p.offset) for p in stream.problems] == [(Truncated, cut)], hex(cut)
        assert len(stream.records) == sum(r.end <= cut for r in whole.records)


def test_a_cut_compressed_file(tmp_path: Path) -> None:
    from tests.conftest import STREAMS

    packed = (STREAMS / "qemu7.2-linux6.1-nested.mig.zst").read_bytes()
    path = tmp_path / "cut.zst"
    path.write_bytes(packed[: len(packed) // 2])
    with open_source(str(path)) as source:
        stream = read_stream(source)
    assert not stream.complete
    assert any("is truncated" in str(p) for p in stream.problems)


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32))
def test_damage_gives_only_our_errors(seed: int, sample: bytes) -> None:
    rng = random.Random(seed)
    data = bytearray(sample)
    devices = data.rfind(b"\x05timer")
    for _ in range(rng.choice([1, 2, 8])):
        area = rng.choice([(0, 300), (devices, len(data)), (0, len(data))])
        at = rng.randrange(*area)
        change = rng.randrange(4)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at : at + 4] = b"\xff\xff\xff\xff"
        elif change == 2:
            del data[at : at + rng.randrange(1, 40)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
    try:
        stream = read_stream(BytesSource(bytes(data)))
    except StreamError:
        return
    machine = read_machine(stream)
    for problem in machine.problems + stream.problems:
        assert 0 <= problem.offset <= len(data)
    for record in stream.sections():
        with contextlib.suppress(StreamError):
            stream.values(record)


def test_description_limit(sample: bytes) -> None:
    stream = read(sample, description_bytes=1000)
    assert isinstance(stream.problems[0], LimitExceeded)
    assert any(s.name == "cpu" for s in stream.sections())


@given(st.lists(st.sampled_from("pzPZ"), max_size=60))
def test_pages_are_counted(kinds: list[str]) -> None:
    part, first = b"", True
    for number, kind in enumerate(kinds):
        block = "pc.ram" if first or kind.isupper() else None
        first = False
        at = number * PAGE
        part += page(at, b"x", block) if kind in "pP" else zero(at, block)
    stream = read(builders.stream(TWO, [part, b""] * 2, {"pc.ram": 1 << 20}))
    text = "".join(kinds).lower()
    assert stream.pages == RamPages(normal=2 * text.count("p"), zero=2 * text.count("z"))
