"""More runs than belong into memory: the same last copies, from temporary files."""

from __future__ import annotations

import os
import random
import tracemalloc
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import EnvironmentFault
from qemu_svm.stream.ram import column, portions, runs
from qemu_svm.stream.ram.column import Column
from qemu_svm.stream.ram.final import FinalRuns, settle_compiled
from qemu_svm.stream.ram.rounds import rounds
from qemu_svm.stream.ram.runs import KIND_BITS, PageKind, Place, RamRuns
from qemu_svm.stream.ram.settle import settle_runs
from tests.support.builders import PAGE

PAGES = 60
KINDS = [PageKind.ZERO, PageKind.PAGE, PageKind.PLACED, PageKind.XBZRLE, PageKind.COMPRESSED]

Sent = list[tuple[int, int, int, PageKind]]


@contextmanager
def small() -> Iterator[None]:
    """As if there were room for a few runs only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column, "MOST_ROWS", 4)
        patch.setattr(column, "_NEAR", 3)
        patch.setattr(column, "_PLACES", 2)
        patch.setattr(runs, "_MOST_PARTS", 2)
        patch.setattr(portions, "ROWS", 6)
        patch.setattr(portions, "_FENCE", 2)
        patch.setattr(portions, "_READ", 3)
        yield


@st.composite
def sent(draw: st.DrawFn) -> Sent:
    places = st.tuples(st.integers(0, 2), st.integers(0, 40), st.integers(1, 20))
    return [
        (block, page, count, draw(st.sampled_from(KINDS if count == 1 else KINDS[:3])))
        for block, page, count in draw(st.lists(places, min_size=8, max_size=40))
    ]


def index(all_: Sent) -> RamRuns:
    made = RamRuns(PAGE)
    for number, (block, page, count, kind) in enumerate(all_):
        made.add(block, page, count, kind, Place(0, (number + 1) << 20))
    return made


def last_copies(index: RamRuns, since: int = 0) -> object:
    found = []
    for block in range(4):
        final = FinalRuns(index, block, since)
        pages = [
            (page + at, kind, data + at * index.strides[kind])
            for page, count, kind, data in final.within(0, PAGES)
            for at in range(count)
        ]
        assert pages == [
            (page, *copy) for page in range(PAGES) if (copy := final.copy(page)) is not None
        ]
        deltas = [
            final.before(page) for page, kind, _ in pages if kind == PageKind.XBZRLE and not since
        ]
        tallies = [final.tally(first, first + 25) for first in range(0, PAGES, 10)]
        found.append((pages, deltas, tallies, final.next_sent(7, 50), index.records_of(block)))
    return found


@settings(max_examples=40, deadline=None)
@given(sent(), st.integers(0, 40))
def test_the_last_copies_are_the_same(all_: Sent, since: int) -> None:
    few = index(all_)
    assert few.few
    since %= len(few) + 1
    expected = last_copies(few), last_copies(few, since), rounds(few), list(few)
    with small():
        many = index(all_)
        assert len(many) <= 4 or not many.few
        assert (last_copies(many), last_copies(many, since), rounds(many), list(many)) == expected


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30), st.integers(1, 255)), max_size=20)
)
def test_copies_of_runs_are_added(given: list[tuple[int, int, int]]) -> None:
    where = array("Q", [page << KIND_BITS | PageKind.ZERO for page, _, _ in given])
    count, times = array("I", [one[1] for one in given]), array("B", [one[2] for one in given])
    data = array("Q", range(len(given)))
    found = [settle(where, count, data, PAGE, times) for settle in (settle_runs, settle_compiled)]
    if found[0] is None or found[1] is None:
        assert found == [None, None]
        return
    assert [list(column) for column in found[0]] == [list(column) for column in found[1]]
    for place, pages, often in zip(found[0][0], found[0][1], found[0][3], strict=True):
        for page in range(place >> KIND_BITS, (place >> KIND_BITS) + pages):
            having = [one[2] for one in given if one[0] <= page < one[0] + one[1]]
            assert often == min(sum(having), 255)


MANY = 12_000
SHAPES = {
    "falling": [*range(MANY, 0, -1)],
    "gaps": [*range(0, 2 * MANY, 2)],
    "any order": random.Random(1).sample(range(MANY), MANY),
    "twice": [*range(0, MANY, 2), *range(0, MANY, 2)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_memory_does_not_grow_with_the_runs(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column, "MOST_ROWS", 1024)
    monkeypatch.setattr(portions, "ROWS", 1024)
    monkeypatch.setattr(portions, "_FENCE", 64)
    monkeypatch.setattr(portions, "_READ", 256)
    monkeypatch.setattr(runs, "_WINDOW", runs.PIECE)
    peaks = []
    for many in (MANY // 4, MANY // 4, MANY):  # what is imported the first time takes memory too
        pages = len(set(SHAPES[shape][:many]))
        made = RamRuns(PAGE)
        tracemalloc.start()
        for number, page in enumerate(SHAPES[shape][:many]):
            made.add(0, page, 1, PageKind.ZERO, Place(0, 9 * number))
        assert FinalRuns(made, 0).tally(0, 1 << 20).sent == pages
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 2.2 * peaks[1]  # in memory it is four times as much


def test_the_file_goes_with_the_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column, "MOST_ROWS", 4)
    before = os.listdir("/proc/self/fd")
    numbers = Column("Q")
    for number in range(100):
        numbers.append(number)
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    assert list(numbers) == list(range(100))
    assert (numbers[-1], numbers[3], list(numbers[90:200]), len(numbers)) == (
        99, 3, list(range(90, 100)), 100,
    )  # fmt: skip
    numbers.replace_last(7)
    assert numbers[99] == 7
    numbers.pop()
    assert len(numbers) == 99
    del numbers
    assert os.listdir("/proc/self/fd") == before


def test_a_full_disk_is_called_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(column, "MOST_ROWS", 4)
    monkeypatch.setattr(os, "pwrite", full)
    numbers = Column("I")
    with pytest.raises(EnvironmentFault, match="no space for the index of RAM"):
        numbers.extend(array("I", range(9)))
