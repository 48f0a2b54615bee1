"""The last copy of each page: the same from C and from Python, and as one page after the other."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.stream.ram import compiled
from qemu_svm.stream.ram.final import FinalRuns, settle_compiled
from qemu_svm.stream.ram.runs import KIND, KIND_BITS, Columns, PageKind, Place, RamRuns
from qemu_svm.stream.ram.settle import settle_runs, tally_runs
from tests.support.builders import PAGE

WHOLE = [PageKind.ZERO, PageKind.PAGE, PageKind.PLACED, PageKind.ABSENT, PageKind.FILLED]
ONE = [PageKind.XBZRLE, PageKind.COMPRESSED]
PAGES = 100


@st.composite
def sent(draw: st.DrawFn) -> list[tuple[int, int, PageKind]]:
    runs = draw(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=30))
    return [
        (page, count, draw(st.sampled_from(WHOLE if count != 1 else WHOLE + ONE)))
        for page, count in runs
    ]


def columns(runs: list[tuple[int, int, PageKind]]) -> Columns:
    where = array("Q", [page << KIND_BITS | kind for page, _, kind in runs])
    count = array("I", [count for _, count, _ in runs])
    return where, count, array("Q", [(number + 1) << 20 for number in range(len(runs))])


@settings(max_examples=300)
@given(sent(), st.integers(0, PAGES), st.integers(0, PAGES))
def test_both_ways_agree(runs: list[tuple[int, int, PageKind]], first: int, end: int) -> None:
    given = columns(runs)
    found = [settle(*given, PAGE) for settle in (settle_runs, settle_compiled)]
    if found[0] is None:
        assert found[1] is None
        rows = *given[:2], None
    else:
        assert found[1] is not None
        assert [list(column) for column in found[0]] == [list(column) for column in found[1]]
        rows = found[0][0], found[0][1], found[0][3]
    for part in ((0, len(rows[0])), (len(rows[0]) // 2, len(rows[0]))):
        expected = tally_runs(rows, (first, end), part)
        assert compiled.ram.tally(rows, (first, end), part) == expected


@settings(max_examples=300)
@given(sent(), st.integers(0, PAGES), st.integers(0, PAGES))
def test_it_is_what_page_after_page_gives(
    runs: list[tuple[int, int, PageKind]], first: int, end: int
) -> None:
    index = RamRuns(PAGE)
    copies: dict[int, list[tuple[PageKind, int]]] = {}
    for number, (page, count, kind) in enumerate(runs):
        place = (number + 1) << 20
        index.add(0, page, count, kind, Place(0, place))
        for at in range(count):
            copies.setdefault(page + at, []).append((kind, place + at * index.strides[kind]))
    final = FinalRuns(index, 0)
    inside = [page for page in range(first, end) if page in copies]
    for page in range(PAGES):
        assert final.copy(page) == (copies[page][-1] if page in copies else None)
    assert [
        (page + at, kind, data + at * index.strides[kind])
        for page, count, kind, data in final.within(first, end)
        for at in range(count)
    ] == [(page, *copies[page][-1]) for page in inside]
    assert final.next_sent(first, max(first, end)) == next(iter(inside), max(first, end))
    tally = final.tally(first, end)
    assert tally.sent == len(inside)
    assert tally.repeated == sum(len(copies[page]) > 1 for page in inside)
    assert tally.most == max((len(copies[page]) for page in inside), default=0)
    for page, all_ in copies.items():
        deltas = []
        while all_ and all_[-1][0] is PageKind.XBZRLE:
            deltas.insert(0, all_.pop()[1])
        if deltas:
            assert final.before(page) == (all_[-1] if all_ else None, array("Q", deltas))


@pytest.mark.parametrize("settle", [settle_runs, settle_compiled])
def test_copies_are_counted_up_to_255(settle: type[settle_runs]) -> None:
    where, count = array("Q", [5 << KIND_BITS | PageKind.ZERO]) * 300, array("I", [1]) * 300
    found = settle(where, count, array("Q", range(300)), PAGE)
    assert found is not None
    assert [list(column) for column in found] == [[where[0]], [1], [299], [255]]


@pytest.mark.parametrize("settle", [settle_runs, settle_compiled])
def test_pages_in_falling_order(settle: type[settle_runs]) -> None:
    many = 5000
    where = array("Q", [page << KIND_BITS | PageKind.ZERO for page in range(many)][::-1])
    found = settle(where, array("I", [1]) * many, array("Q", range(many)), PAGE)
    assert found is not None
    assert list(found[2]) == list(range(many))[::-1]
    assert [place & KIND for place in found[0]] == [PageKind.ZERO] * many


def test_only_what_was_sent_later() -> None:
    index = RamRuns(PAGE)
    index.add(0, 0, 4, PageKind.PAGE, Place(0, 100))
    index.add(1, 0, 1, PageKind.ZERO, Place(0, 9))
    index.add(0, 4, 1, PageKind.PAGE, Place(0, 100 + 4 * (PAGE + 8)))
    mark = index.seal()
    index.add(0, 5, 2, PageKind.PAGE, Place(0, 100 + 5 * (PAGE + 8)))
    assert FinalRuns(index, 0).tally(0, 9).sent == 7
    assert [one[:2] for one in FinalRuns(index, 0, mark).within(0, 9)] == [(5, 2)]
    assert FinalRuns(index, 1, mark).tally(0, 9).sent == 0


def test_the_compiled_ones_take_no_nonsense() -> None:
    where, count, data = array("Q", [8]), array("I", [1]), array("Q", [0])
    for columns in (
        (where, count, data * 2),
        (where * 2, count, data),
        (array("Q", [-8 % 2**64]), array("I", [9]), data),
    ):
        with pytest.raises(ValueError, match="runs of different lengths, or past"):
            compiled.ram.settle(*columns, PAGE)
    for rows in ((-1, 1), (0, 2)):
        with pytest.raises(ValueError, match="lengths"):
            compiled.ram.tally((where, count, None), (0, 9), rows)
    with pytest.raises(ValueError, match="lengths"):
        compiled.ram.tally((where, count, bytes(2)), (0, 9), (0, 1))
