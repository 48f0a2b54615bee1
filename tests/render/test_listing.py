"""Rows for the records of a stream: as many as a person reads."""

from __future__ import annotations

import pytest

from qemu_svm.render.listing import Left, listed
from qemu_svm.source import BytesSource
from qemu_svm.stream import Kind, read_stream
from qemu_svm.stream.constants import RecordType
from tests.support import builders


def test_of_one_command_the_first_records_are_kept() -> None:
    start = builders.header() + builders.configuration("pc")
    many = [builders.command(99 + at % 2) + builders.command(2, b"\0\0\0\1") for at in range(5000)]
    whole = BytesSource(start + b"".join(many) + b"\0")
    stream = read_stream(whole)
    assert stream.complete
    assert not stream.problems
    kept = [record for record in stream.records if record.kind is Kind.COMMAND]
    (folded,) = [record for record in stream.records if record.kind is Kind.SKIPPED]
    assert len(kept) == 2048  # 1024 pings, and as many that no QEMU knows
    assert folded.count + len(kept) == 10_000
    assert folded.end == stream.records[-1].offset
    rows = list(listed(stream.records, 100))
    assert len(rows) < 10
    assert sum(isinstance(row, Left) for row in rows) == 1


@pytest.mark.parametrize("number", [12, 13, 500])
def test_of_many_parts_the_first_and_the_last_are_listed(number: int) -> None:
    start = builders.named(RecordType.START, 7, "foo", 0, 1, b"x")
    # None like the one before, which are folded when they are read.
    more = [builders.referring(RecordType.PART, 7, b"%d" % at) for at in range(number)]
    head = builders.header() + builders.configuration("pc") + start
    records = read_stream(BytesSource(head + b"".join(more) + b"\0")).records
    assert len(records) == number + 3
    rows = list(listed(records, 1000))
    left = [row for row in rows if isinstance(row, Left)]
    assert [row.words for row in left] == ([f"{number - 5} more parts"] if number > 12 else [])
    assert sum(row.size for row in rows) == records[-1].end - records[0].offset
    few = list(listed([record for record in records if record.kind is not Kind.PART] * 50, 100))
    assert len(few) == 101
    assert isinstance(few[-1], Left)
    assert few[-1].words == "50 more"
