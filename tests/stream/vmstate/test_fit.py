"""Layouts out of dumps: what fits in one way is what QEMU wrote, and nothing else is said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qemu_svm.findings.inspection import findings
from qemu_svm.machine import read_machine
from qemu_svm.source import BytesSource, open_source
from qemu_svm.stream import Kind, Value, read_stream
from qemu_svm.stream.reader import Reader
from qemu_svm.stream.vmstate.decode import decode
from qemu_svm.stream.vmstate.description import Fields
from qemu_svm.stream.vmstate.dump import Dump, parse_dump
from qemu_svm.stream.vmstate.fit import fitted
from qemu_svm.stream.vmstate.lend import description_of
from tests.conftest import STREAMS, capture_bytes

pytestmark = pytest.mark.qemu

CAPTURES = ["qemu7.2-linux6.1-nested.mig.zst", "kinds/qemu7.2-xbzrle.mig.zst",
            "kinds/qemu7.2-slirp.mig.zst", "kinds/qemu7.2-block.mig.zst"]  # fmt: skip


def leaves(value: Value) -> list[tuple[str, int, int]]:
    return [(node.name, node.offset, node.size) for _, node in value.walk()
            if node.size and not node.children]  # fmt: skip


@pytest.mark.parametrize("name", CAPTURES)
def test_what_fits_is_what_the_stream_describes(name: str, dump: Dump) -> None:
    done = []
    with open_source(str(STREAMS / name)) as source:
        stream = read_stream(source)
        for record in stream.sections():
            layouts = dump.of_section(record.name or "")
            payload = source.read_at(record.payload, record.payload_size)
            layout = fitted(layouts, record.version_id or 0, payload)
            if layout is None or record.described != "embedded":
                continue
            described = stream.values(record)
            assert described is not None
            nodes = {(node.name, node.offset, node.size) for _, node in described.walk()}
            found = decode(Reader(source, record.payload), layout, record.name or "")
            assert found.end == record.payload + record.payload_size
            assert set(leaves(found)) <= nodes, record.name
            done.append(record.name)
    assert {"0000:00:00.0/I440FX", "mc146818rtc", "fw_cfg", "pckbd"} <= set(done)


def test_a_stream_without_description_and_a_dump(text: bytes) -> None:
    whole = capture_bytes(CAPTURES[0])
    with open_source(str(STREAMS / CAPTURES[0])) as source:
        described = read_stream(source)
        end = next(r for r in described.records if r.kind is Kind.EOF).end
        rtc = next(r for r in described.sections() if r.name == "mc146818rtc")
        wanted = described.values(rtc)
    assert wanted is not None
    stream = read_stream(BytesSource(whole[:end]), borrowed=description_of(BytesSource(text)))
    assert (stream.complete, stream.problems, stream.description_source) == (True, (), "dump")
    from_where = {record.name: record.described for record in stream.sections()}
    assert from_where["cpu"] == "builtin"
    assert from_where["mc146818rtc"] == "dump"
    assert from_where["apic"] == "none"  # in no dump
    found = stream.values(rtc)
    assert found is not None
    assert found.number("current_tm.tm_year") == wanted.number("current_tm.tm_year")
    assert leaves(found) == leaves(wanted)
    (told,) = findings(read_machine(stream))
    assert "where only one layout fits" in told.message


def test_a_dump_is_of_no_use_to_a_stream_that_describes_itself(text: bytes) -> None:
    lent = description_of(BytesSource(text))
    stream = read_stream(BytesSource(capture_bytes(CAPTURES[0])), borrowed=lent)
    assert (stream.description_source, stream.lent) == ("embedded", None)
    assert {record.described for record in stream.sections()} == {"embedded"}


# Made layouts.


def plain(name: str, size: int, **more: Any) -> dict[str, Any]:
    return {"field": name, "version_id": 0, "field_exists": False, "size": size} | more


def layout(*fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    made = {"name": "dev", "version_id": 2, "minimum_version_id": 1, "Fields": list(fields)}
    return made | more


def fit(made: dict[str, Any], payload: bytes, version: int = 2) -> Fields | None:
    text = json.dumps({"vmschkmachine": {"Name": "pc"}, "dev": {"Description": made}}).encode()
    return fitted(parse_dump(text).of_section("0000:00:01.0/dev"), version, payload)


def names(fields: Fields | None) -> list[str] | None:
    return None if fields is None else [field.name for field in fields.fields]


def test_the_length_decides_on_conditional_fields() -> None:
    made = layout(plain("a", 4), plain("b", 2, field_exists=True), plain("c", 4, field_exists=True))
    assert names(fit(made, bytes(4))) == ["a"]
    assert names(fit(made, bytes(6))) == ["a", "b"]
    assert names(fit(made, bytes(8))) == ["a", "c"]
    assert names(fit(made, bytes(10))) == ["a", "b", "c"]
    assert fit(made, bytes(5)) is None
    assert fit(made, b"") is None


def test_two_ways_are_none() -> None:
    made = layout(plain("a", 4), plain("b", 2, field_exists=True), plain("c", 2, field_exists=True))
    assert fit(made, bytes(6)) is None
    assert names(fit(made, bytes(8))) == ["a", "b", "c"]
    inner = layout(plain("x", 1, field_exists=True), plain("y", 1, field_exists=True), name="in")
    assert fit(layout(plain("s", 99, Description=inner)), bytes(1)) is None
    assert fit(layout(plain("s", 99, Description=inner), plain("a", 4)), bytes(5)) is None


def test_versions() -> None:
    made = layout(plain("a", 4), plain("late", 4, version_id=2))
    assert names(fit(made, bytes(4), 1)) == ["a"]
    assert names(fit(made, bytes(8), 2)) == ["a", "late"]
    assert fit(made, bytes(8), 3) is None
    assert fit(made, bytes(4), 0) is None


def test_timers_arrays_and_structures() -> None:
    inner = layout(plain("x", 1), plain("y", 2), name="in")
    made = layout(plain("t", 48), plain("n", 4, num=3), plain("s", 99, num=2, Description=inner))
    found = fit(made, bytes(8 + 12 + 6))
    assert names(found) == ["t", "n", "s", "s"]
    assert found is not None
    assert [(field.type, field.size, field.array_len) for field in found.fields] == [
        ("uint64", 8, None), ("uint32", 4, 3), ("struct", 3, None), ("struct", 3, None)
    ]  # fmt: skip
    assert fit(made, bytes(8 + 12 + 3)) is None


def test_subsections_say_themselves_that_they_are_there() -> None:
    late = layout(plain("z", 4), plain("new", 4, version_id=3), name="dev/late", version_id=3)
    other = layout(plain("q", 1), name="dev/other")
    made = layout(plain("a", 4), Subsections=[other, late])
    head = b"\x05\x08dev/late"
    found = fit(made, bytes(4) + head + b"\0\0\0\3" + bytes(8))
    assert found is not None
    assert [(sub.name, sub.version, len(sub.fields)) for sub in found.subsections] == [
        ("dev/late", 3, 2)
    ]
    older = fit(made, bytes(4) + head + b"\0\0\0\2" + bytes(4))
    assert older is not None
    assert len(older.subsections[0].fields) == 1
    assert fit(made, bytes(4) + head + b"\0\0") is None
    assert fit(made, bytes(4) + b"\x05\x08dev/nope\0\0\0\1") is None


@pytest.mark.parametrize(
    "made",
    [
        layout(plain("n", -1)),
        layout(plain("n", 1, num=-1)),
        layout(plain("n", 1 << 39)),
        layout(plain("n", 0, num=1 << 39, Description=layout(name="in"))),
        layout(*(plain(f"f{n}", n, field_exists=True) for n in range(2000))),
        layout(plain("s", 9, num=1 << 12, Description=layout(
            *(plain(f"f{n}", 1, field_exists=True) for n in range(64)), name="in"))),
    ],
)  # fmt: skip
def test_what_no_section_can_be(made: dict[str, Any]) -> None:
    assert fit(made, bytes(5000)) is None


@given(st.lists(st.tuples(st.integers(1, 9), st.booleans(), st.booleans()), max_size=8))
def test_the_only_way_is_the_right_one(fields: list[tuple[int, bool, bool]]) -> None:
    """Of fields with and without conditions, some are there."""
    made = [plain(f"f{n}", size, field_exists=maybe) for n, (size, maybe, _) in enumerate(fields)]
    there = [f"f{n}" for n, (_, maybe, sent) in enumerate(fields) if sent or not maybe]
    size = sum(one["size"] for one in made if one["field"] in there)
    open_ones = [one["size"] for one in made if one["field_exists"]]
    sums = [0]
    for more in open_ones:
        sums += [total + more for total in sums]
    sure = sum(one["size"] for one in made) - sum(open_ones)
    ways = sums.count(size - sure)
    found = fit(layout(*made), bytes(size))
    assert names(found) == (there if ways == 1 else None)
