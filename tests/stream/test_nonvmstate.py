"""Sections that QEMU writes by hand: real ones, made ones, damaged ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qemu_svm.errors import LimitExceeded, Malformed
from qemu_svm.limits import Limits
from qemu_svm.machine import Machine, read_machine
from qemu_svm.machine.paths import find
from qemu_svm.source import BytesSource, open_source
from qemu_svm.stream import Kind, Stream, Value, Walk, read_stream
from qemu_svm.stream.constants import RecordType
from tests.conftest import STREAMS, Run
from tests.support import builders


@contextmanager
def real(name: str, walk: Walk = Walk.RAM) -> Iterator[Machine]:
    with open_source(str(STREAMS / "kinds" / f"{name}.mig.zst")) as source:
        yield read_machine(read_stream(source, walk=walk))


def items(machine: Machine, name: str) -> list[tuple[str, dict[str, Any]]]:
    """All items of a section: the kind of each, and its fields."""
    tree = find(machine, f"section:{name}").value
    parts = tree.children if tree.type == "section in parts" else (tree,)
    return [
        (item.name, {field.name: field.value for field in item.children})
        for part in parts
        for numbered in part.children
        for item in numbered.children
    ]


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_dirty_bitmaps_of_a_real_disk(version: str) -> None:
    with real(f"qemu{version}-dirty-bitmap") as machine:
        found = [entry for entry in items(machine, "dirty-bitmap") if entry[0] != "end"]
        skipped = [r for r in machine.stream.records if r.kind is Kind.SKIPPED]
    starts = {
        str(fields["bitmap"]): (fields["granularity"], fields["bitmap_flags"])
        for kind, fields in found
        if kind == "start"
    }
    # A persistent bitmap bears 2, an enabled one 1.
    assert starts == {"kept": (0x10000, 3), "lost": (4096, 1)}
    bits = [fields for kind, fields in found if kind == "bits"]
    # 128 KiB at 1 MiB: two bits of 64 KiB, 32 of 4 KiB.
    ones = sorted(
        int.from_bytes(fields["bits"], "little").bit_count()
        for fields in bits
        if isinstance(fields["bits"], bytes)
    )
    assert ones == [2, 32]
    assert [kind for kind, _ in found].count("complete") == 2
    # What had nothing in it is folded, and counted.
    assert skipped
    assert all(record.count > 1000 and record.size < 30 * record.count for record in skipped)


def test_a_real_disk_in_chunks() -> None:
    with real("qemu7.2-block") as machine:
        found = items(machine, "block")
    chunks = [(kind, fields) for kind, fields in found if "chunk" in kind]
    assert sorted(fields["sector"] for _, fields in chunks) == [0, 2048, 4096, 6144]
    assert {fields["device"] for _, fields in chunks} == {"disk"}
    written = next(fields for _, fields in chunks if fields["sector"] == 2048)
    assert written["content"] == b"\7" * (128 << 10) + bytes(896 << 10)
    assert [fields["percent"] for kind, fields in found if kind == "progress"][-1] == 100


def test_a_real_hash_page_table() -> None:
    with real("qemu7.2-htab") as machine:
        found = items(machine, "spapr/htab")
        assert machine.name == "pseries-7.2"
        assert machine.vcpus == ()
        assert machine.stream.problems == ()
    assert found[0] == ("table", {"shift": 21})
    (chunk,) = [fields for kind, fields in found if kind == "chunk"]
    assert (chunk["index"], chunk["valid"], chunk["invalid"]) == (16, 1, 0)
    assert chunk["entries"] == (1).to_bytes(8, "big") + (0x10).to_bytes(8, "big")


def test_real_storage_keys_and_attributes() -> None:
    with real("qemu7.2-s390x") as machine:
        keys = items(machine, "s390-skeys")
        assert [kind for kind, _ in keys] == ["chunk", "end"]
        data = keys[0][1]["keys"]
        assert isinstance(data, bytes)
        # The guest gave key 3 to sixteen pages from 0x2000 on.
        assert data[2:18] == b"\x30" * 16
        assert keys[0][1]["count"] == len(data) == 4096
        attributes = [kind for kind, _ in items(machine, "s390-storage_attributes")]
        assert attributes == ["end", "end", "done", "end"]
        ((kind, clock),) = items(machine, "todclock")
        assert (kind, clock["present"]) == ("clock", 1)
        assert machine.stream.problems == ()
        # QEMU 7.2 describes an array of pointers by its first element, a NULL.
        css = next(record for record in machine.stream.sections() if record.name == "s390_css")
        assert css.opaque
        assert css.described == "none"


def test_a_real_user_network() -> None:
    with real("qemu7.2-slirp") as machine:
        record = next(r for r in machine.stream.sections() if r.name == "slirp")
        value = machine.stream.values(record)
        assert value is not None
        assert value.child("data") is not None
        assert value.size == record.payload_size


def in_parts(name: str, *payloads: bytes, footers: bool = True) -> bytes:
    """A stream with a section in START, PARTs and END, then a described device."""
    device = builders.Section("dev", b"abcd", [{"name": "a", "type": "buffer", "size": 4}])
    whole = builders.stream([device], footers=footers)
    kinds = [RecordType.PART] * (len(payloads) - 1) + [RecordType.END]
    parts = builders.named(
        RecordType.START, 7, name, 0, 1, payloads[0], footers=footers
    ) + b"".join(
        builders.referring(kind, 7, payload, footers=footers)
        for kind, payload in zip(kinds[1:], payloads[1:], strict=True)
    )
    end = builders.referring(RecordType.END, 2, builders.EOS, footers=footers)
    at = whole.index(end)
    return whole[:at] + parts + whole[at:]


VFIO = 0xFFFFFFFF_EF100000
FAKE = builders.footer(7) + b"\0"  # what a search would take for the end


def word(value: int) -> bytes:
    return value.to_bytes(8, "big")


PAYLOADS = {
    "block": [word(2), word(1 | 3 << 9) + b"\1d" + FAKE.ljust(1 << 20, b"x") + word(2), word(2)],
    "dirty-bitmap": [
        b"\x1c\1n\1b" + bytes(4) + b"\1\1",
        b"\x40" + bytes(12) + word(32) + FAKE.ljust(32, b"\0") + b"\1",
        b"\x20\1",
    ],
    "spapr/htab": [
        (24).to_bytes(4, "big"),
        bytes(8) + b"\0\1\0\0" + FAKE.ljust(16, b"\0") + bytes(8),
        bytes(12),
    ],
    "s390-storage_attributes": [
        word(1),
        word(0x5000 | 2) + word(8) + FAKE.ljust(8, b"\0") + word(1),
        word(8) + word(1),
    ],
    "0000:00:03.0/vfio": [
        word(VFIO | 3) + word(VFIO | 1),
        word(VFIO | 4) + word(100) + FAKE.ljust(100, b"\0") + word(VFIO | 5),
        word(VFIO | 4) + word(0) + word(VFIO | 1),
    ],
}


@pytest.mark.parametrize("footers", [True, False])
@pytest.mark.parametrize("name", PAYLOADS)
def test_a_footer_inside_the_data_is_not_the_end(name: str, footers: bool) -> None:
    stream = read_stream(BytesSource(in_parts(name, *PAYLOADS[name], footers=footers)))
    assert stream.complete
    assert stream.problems == ()
    records = [record for record in stream.records if record.name == name]
    assert [record.kind for record in records] == [Kind.START, Kind.PART, Kind.END]
    assert [record.payload_size for record in records] == list(map(len, PAYLOADS[name]))
    assert not any(record.opaque for record in records)
    for record in records:
        value = stream.values(record)
        assert value is not None
        assert spans(value) == (record.payload, record.payload + record.payload_size)


def spans(value: Value) -> tuple[int, int]:
    """Start and end, if the children stand there one behind the other."""
    at = value.offset
    for child in value.children:
        assert child.offset == at
        at = child.end
    return value.offset, at


def test_the_configuration_of_a_vfio_device_ends_at_its_footer() -> None:
    end = word(VFIO | 2) + b"PCI state" + word(VFIO | 1)
    stream = read_stream(BytesSource(in_parts("vfio", PAYLOADS["0000:00:03.0/vfio"][0], end)))
    record = next(r for r in stream.records if r.name == "vfio" and r.kind is Kind.END)
    assert (record.name, record.opaque, record.payload_size) == ("vfio", True, len(end))
    value = stream.values(record)
    assert value is not None
    (item,) = value.children
    assert (item.children[0].name, item.size) == ("rest", len(end))
    assert stream.problems == ()


@pytest.mark.parametrize("name", PAYLOADS)
def test_damage_inside_is_told_and_stepped_over(name: str) -> None:
    payloads = [*PAYLOADS[name][:1], b"\xff" * 20, PAYLOADS[name][-1]]
    stream = read_stream(BytesSource(in_parts(name, *payloads)))
    (problem,) = stream.problems
    assert isinstance(problem, Malformed)
    assert problem.section == name
    bad = next(record for record in stream.records if record.opaque)
    assert bad.payload <= problem.offset <= bad.payload + bad.payload_size
    assert stream.records[-1].kind is Kind.DESCRIPTION
    value = stream.values(bad)
    assert value is None or value.children[-1].children[0].name == "rest"


def test_a_length_behind_the_end_is_no_truncation() -> None:
    data = in_parts("block", word(2), b"\0" * 7 + b"\1\1d" + b"x" * 20, word(2))
    stream = read_stream(BytesSource(data))
    (problem,) = stream.problems
    assert type(problem) is Malformed
    assert "past the end" in problem.what
    assert stream.complete


def test_unknown_sections_in_parts_survive() -> None:
    stream = read_stream(BytesSource(in_parts("new/thing", b"one", b"two", b"three")))
    found = [record for record in stream.records if record.name == "new/thing"]
    assert [(record.payload_size, record.opaque) for record in found] == [
        (3, True), (3, True), (5, True)
    ]  # fmt: skip
    tree = find(read_machine(stream), "section:new/thing").value
    assert [child.value for child in tree.children] == [b"one", b"two", b"three"]


def empty_parts(count: int) -> bytes:
    return in_parts("dirty-bitmap", *[b"\1"] * count)


def read(data: bytes, limits: Limits = Limits()) -> Stream:  # noqa: B008 - frozen
    return read_stream(BytesSource(data), limits)


def test_very_many_empty_parts_are_folded() -> None:
    stream = read(empty_parts(3000))
    folded = [record for record in stream.records if record.kind is Kind.SKIPPED]
    (record,) = folded
    assert record.count == 2998 - 2
    assert stream.complete
    assert stream.pages is not None
    at = 8
    for each in stream.records:
        assert each.offset == at
        at = each.end


def test_a_few_empty_parts_are_listed() -> None:
    stream = read(empty_parts(12))
    assert sum(record.kind is Kind.PART for record in stream.records) == 10


def test_more_parts_than_the_limit_are_counted_only() -> None:
    parts = [b"\x1c\1n" + bytes((2, 97 + n // 26 % 26, 97 + n % 26)) + bytes(5) + b"\1"
             for n in range(100)]  # fmt: skip
    stream = read(in_parts("dirty-bitmap", b"\1", *parts, b"\1"), Limits(records=20))
    assert len(stream.records) < 30
    (folded,) = [record for record in stream.records if record.kind is Kind.SKIPPED]
    listed = sum(record.kind is Kind.PART for record in stream.records)
    assert folded.count + listed == 100
    assert stream.complete


def test_too_many_items_to_show() -> None:
    stream = read(
        in_parts("block", word(2), word(4) * 1000 + word(2), word(2)), Limits(section_values=500)
    )
    record = next(record for record in stream.records if record.payload_size > 1000)
    with pytest.raises(LimitExceeded) as caught:
        stream.values(record)
    assert caught.value.offset >= record.payload


def test_show_names_parts(command: Run) -> None:
    path = STREAMS / "kinds" / "qemu7.2-htab.mig.zst"
    text = command("show", path, "section:spapr/htab").stdout.decode()
    assert "[1][1].chunk.index" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    one = json.loads(command("show", path, "section:spapr/htab[0][0].table.shift", "--json").stdout)
    assert one["value"] == "0x15"
    at = command("show", path, f"@{one['offset']}").stdout.decode()
    assert at.startswith("section:spapr/htab[0][0].table.shift")
    raw = command("show", path, "section:spapr/htab", "--raw")
    assert raw.returncode == 2
    assert b"'section:spapr/htab[0]'" in raw.stderr
