"""The log's format: what is written is read, every cut and every damage is told."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import LimitExceeded, Malformed, StreamError, Truncated, Unsupported
from qemu_svm.limits import DEFAULT
from qemu_svm.source.plain import BytesSource
from qemu_svm.vmruns import structs
from qemu_svm.vmruns.reader import Event, LogReader
from qemu_svm.vmruns.structs import Flag, RecordKind
from tests.vmruns.written import PAGE, Writer, header

u64 = st.integers(0, (1 << 64) - 1)


@st.composite
def pages(draw: st.DrawFn) -> bytes:
    page = bytearray(PAGE)
    for at in draw(st.lists(st.integers(0, PAGE // 8 - 1), max_size=6)):
        page[8 * at : 8 * at + 8] = draw(st.binary(min_size=8, max_size=8))
    return bytes(page)


@st.composite
def logs(draw: st.DrawFn) -> tuple[Writer, list[dict[str, object]]]:
    writer = Writer(pages=draw(st.integers(1, 3)))
    wanted = []
    for _ in range(draw(st.integers(0, 8))):
        what: dict[str, object] = {
            "kind": draw(st.sampled_from(list(RecordKind))),
            "vcpu": draw(st.integers(0, 3)),
            "rip": draw(u64),
            "rax": draw(u64),
            "time": draw(u64),
        }
        if draw(st.booleans()):
            what |= {"page": draw(pages()), "address": 0x1000 * draw(st.integers(1, 4))}
            what |= {"entry": draw(u64)}
        writer.add(**what)  # type: ignore[arg-type]
        wanted.append(what)
    return writer, wanted


def events(data: bytes) -> tuple[list[Event], StreamError | None]:
    found: list[Event] = []
    try:
        found.extend(LogReader(BytesSource(data)))
    except StreamError as error:
        return found, error
    return found, None


@given(logs())
@settings(max_examples=150)
def test_round_trip(log: tuple[Writer, list[dict[str, object]]]) -> None:
    writer, wanted = log
    found, error = events(bytes(writer.data))
    assert error is None
    assert [event.number for event in found] == list(range(1, len(wanted) + 1))
    for event, what in zip(found, wanted, strict=True):
        for name, value in what.items():
            assert getattr(event, name) == value, name
        assert (event.page is None) == ("page" not in what)


@given(logs(), st.data())
@settings(max_examples=150)
def test_any_cut_is_told_where_it_is(
    log: tuple[Writer, list[dict[str, object]]], data: st.DataObject
) -> None:
    writer, _ = log
    whole, _ = events(bytes(writer.data))
    cut = data.draw(st.integers(0, len(writer.data)))
    found, error = events(bytes(writer.data[:cut]))
    assert found == whole[: len(found)]
    assert len(found) == sum(end <= cut for end in writer.ends)
    if cut in (32, *writer.ends):
        assert error is None
    else:
        assert isinstance(error, Truncated)
        assert error.offset == cut


@given(logs(), st.data())
@settings(max_examples=200)
def test_any_flipped_bit_is_found(
    log: tuple[Writer, list[dict[str, object]]], data: st.DataObject
) -> None:
    writer, _ = log
    at = data.draw(st.integers(0, len(writer.data) - 1))
    damaged = bytearray(writer.data)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    whole, _ = events(bytes(writer.data))
    found, error = events(bytes(damaged))
    assert error is not None
    assert found == whole[: len(found)]


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_noise_gives_errors_of_ours(noise: bytes) -> None:
    for start in (b"", structs.MAGIC, header()):
        events(start + noise)


def test_the_end_is_told() -> None:
    writer = Writer()
    reader = LogReader(writer.source())
    assert list(reader) == []
    assert reader.end is None
    writer.add(RecordKind.END, rax=2)
    reader = LogReader(writer.source())
    assert len(list(reader)) == 1
    assert reader.end == "the size limit was reached"


def test_other_files_are_refused(sample: bytes) -> None:
    with pytest.raises(Malformed, match="not a log of svmtrace"):
        LogReader(BytesSource(sample))
    with pytest.raises(Truncated):
        LogReader(BytesSource(b""))


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({"version": 2}, Unsupported),
        ({"pages": DEFAULT.vmruns_pages + 1}, LimitExceeded),
        ({"page_size": 8192}, Malformed),
        ({"size": 40}, Malformed),
    ],
)
def test_impossible_headers(more: dict[str, int], kind: type[StreamError]) -> None:
    with pytest.raises(kind):
        LogReader(BytesSource(header(**more)))


def test_changes_to_an_unknown_page() -> None:
    writer = Writer()
    writer.known[0x1000] = bytes(PAGE)
    writer.add(RecordKind.VMRUN, address=0x1000, page=bytes(PAGE))
    found, error = events(bytes(writer.data))
    assert isinstance(error, Malformed)
    assert not found
    assert "0x1000" in str(error)


@pytest.mark.parametrize("run", [(4090, 8), (0, 4097), (0xFFFF, 1)])
def test_a_run_outside_its_page(run: tuple[int, int]) -> None:
    offset, length = run
    body = structs.PAGE.build({"address": 0, "entry": 0, "runs": 1})
    body += structs.RUN.build({"offset": offset, "length": length}) + bytes(min(length, 8))
    head = {"size": 44 + len(body), "kind": RecordKind.VMRUN, "flags": Flag.PAGE, "vcpu": 0}
    head |= {"number": 1, "time": 0, "rip": 0, "rax": 0}
    data = structs.RECORD.build(head) + body
    data += structs.CHECKSUM.build(zlib.crc32(data))
    _, error = events(header() + data)
    assert isinstance(error, Malformed)


def test_memory_is_bounded_by_the_header() -> None:
    writer = Writer(pages=2)
    for number in range(50):
        writer.add(RecordKind.VMRUN, address=0x1000 * number, page=bytes([number]) * PAGE)
    reader = LogReader(writer.source())
    for event in reader:
        assert event.page == bytes([event.number - 1]) * PAGE
        assert len(reader._pages) <= 2
