"""The last copies of pages, from more runs than belong into memory.

The runs are settled in portions, in the order of sending.  Of each block the portions are then
merged, some pages at a time: a page is in a portion once, with the number of its copies there,
and the copy of the last portion that has it is the last one.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from qemu_svm.stream.ram.column import Column
from qemu_svm.stream.ram.deltas import Deltas
from qemu_svm.stream.ram.runs import KIND, KIND_BITS, RamRuns, Settle, Settled

ROWS = 1 << 18
"""Runs that are settled at once, about."""
_FENCE = 1024  # rows of a portion from one noted page to the next
_READ = 1 << 14  # rows that are read at once


class Rows:
    """Runs that do not overlap, with the number of copies of their pages."""

    def __init__(self) -> None:
        self.columns = Column("Q"), Column("I"), Column("Q"), Column("B")

    def __len__(self) -> int:
        return len(self.columns[0])

    def extend(self, rows: Settled) -> None:
        """Append runs."""
        for column, values in zip(self.columns, rows, strict=True):
            column.extend(values)

    def part(self, first: int, end: int) -> Settled:
        """Return the runs from a row to before another."""
        where, count, data, times = (column[first:end] for column in self.columns)
        return where, count, data, times


@dataclass(frozen=True, slots=True)
class Span:
    """The runs of one block: from the row ``first`` to before ``end``."""

    rows: Rows
    first: int
    end: int


@dataclass(slots=True)
class _Portion:
    # Settled runs of one block, as they are merged.
    span: Span
    fences: Sequence[int]  # ``where`` of every so many rows
    at: int = 0
    rest: Settled | None = None  # of a run, what is after the pages that were merged

    def below(self, page: int, strides: Mapping[int, int]) -> Iterator[Settled]:
        # The runs before a page, of which the last one may be cut there.
        while self.rest is not None or self.at < self.span.end:
            found, self.rest = self.rest, None
            if found is None:
                found = self.span.rows.part(self.at, min(self.at + _READ, self.span.end))
                many = bisect_left(found[0], page << KIND_BITS)
                found = found[0][:many], found[1][:many], found[2][:many], found[3][:many]
                if not many:
                    return
                self.at += many
            elif found[0][0] >> KIND_BITS >= page:
                self.rest = found
                return
            over = (found[0][-1] >> KIND_BITS) + found[1][-1] - page
            if over > 0:
                self.rest = _cut(found, over, strides)
            yield found
            if over > 0:
                return


def _cut(rows: Settled, over: int, strides: Mapping[int, int]) -> Settled:
    # Take the last ``over`` pages from the last run; return them as a run.
    where, count, data, times = (column[-1] for column in rows)
    into = count - over
    rows[1][-1] = into
    return (
        array("Q", (where + (into << KIND_BITS),)),
        array("I", (over,)),
        array("Q", (data + into * strides[where & KIND],)),
        array("B", (times,)),
    )


@dataclass(slots=True)
class _Merger:
    runs: RamRuns
    settle: Settle
    portions: dict[int, list[_Portion]] = field(default_factory=dict)
    first: Rows = field(default_factory=Rows)  # the runs of all portions
    final: Rows = field(default_factory=Rows)

    def read(self, since: int) -> None:
        # Settle all runs in portions.
        pending: dict[int, tuple[array[int], array[int], array[int]]] = {}
        many = 0
        for block, *rows in self.runs.ordered(since):
            if block not in pending:
                pending[block] = array("Q"), array("I"), array("Q")
            for column, values in zip(pending[block], rows, strict=True):
                column.extend(values)
            many += len(rows[0])
            if many >= ROWS:
                self._portions(pending)
                many = 0
        self._portions(pending)

    def _portions(self, pending: dict[int, tuple[array[int], array[int], array[int]]]) -> None:
        for block in list(pending):
            where, count, data = pending.pop(block)
            found = self.settle(where, count, data, self.runs.page_size, None)
            rows = found or (where, count, data, array("B", b"\1") * len(where))
            first = len(self.first)
            self.first.extend(rows)
            span = Span(self.first, first, len(self.first))
            portion = _Portion(span, array("Q", rows[0][::_FENCE]), first)
            self.portions.setdefault(block, []).append(portion)

    def merged(self, block: int) -> Span:
        # The runs of a block out of all its portions.
        portions = self.portions[block]
        if len(portions) == 1:
            return portions[0].span
        first = len(self.final)
        pages = sorted(where >> KIND_BITS for one in portions for where in one.fences)
        for page in (*pages[ROWS // _FENCE :: ROWS // _FENCE], 1 << 61):
            rows = array("Q"), array("I"), array("Q"), array("B")
            for portion in portions:
                for found in portion.below(page, self.runs.strides):
                    for column, values in zip(rows, found, strict=True):
                        column.extend(values)
            if rows[0]:
                where, count, data, times = rows
                self.final.extend(
                    self.settle(where, count, data, self.runs.page_size, times) or rows
                )
        return Span(self.final, first, len(self.final))


class SettledBlocks:
    """The last copies of the pages of all blocks.

    :param since: only what was sent after this result of ``RamRuns.seal``.
    """

    def __init__(self, runs: RamRuns, settle: Settle, since: int) -> None:
        self.of = since, len(runs)
        merger = _Merger(runs, settle)
        merger.read(since)
        self._spans = {block: merger.merged(block) for block in merger.portions}
        self._none = Span(merger.final, 0, 0)
        self._runs = runs
        self._deltas: Deltas | None = None

    def span(self, block: int) -> Span:
        """Return the runs of a block."""
        return self._spans.get(block, self._none)

    def deltas(self) -> Deltas:
        """Return what pages are made of that were sent as deltas."""
        if self._deltas is None:
            self._deltas = Deltas(self._runs.sent, self._runs.strides)
            for block, span in self._spans.items():
                where = span.rows.columns[0]
                for at in range(span.first, span.end, _READ):
                    self._deltas.want(block, where[at : min(at + _READ, span.end)])
            self._deltas.read(self._runs.ordered())
        return self._deltas


def settled(runs: RamRuns, settle: Settle, since: int = 0) -> SettledBlocks:
    """Return the last copies of all pages, which are kept for the next call."""
    if runs.settled is None or runs.settled.of != (since, len(runs)):
        runs.settled = SettledBlocks(runs, settle, since)
    return runs.settled
