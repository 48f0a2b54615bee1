"""The last copy of each page of RAM: runs in the order of the pages, none of which overlap.

They are made from the runs in the order of sending (:class:`~qemu_svm.stream.ram.runs.RamRuns`)
once for each block, by the compiled module or here, and take memory for what was sent,
whatever size the block has.  Where a stream has one pass over the RAM, they are the same
runs.  Each has the number of copies of its pages, and the columns have the form of
``RamRuns``.  Where there are more runs than belong into memory, all blocks are done together,
with most of the result in temporary files (:mod:`~qemu_svm.stream.ram.portions`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import add

from qemu_svm.stream.ram import compiled
from qemu_svm.stream.ram.deltas import Deltas
from qemu_svm.stream.ram.runs import (
    KIND,
    KIND_BITS,
    KINDS,
    PIECE,
    Columns,
    PageKind,
    RamRuns,
    Settle,
    Settled,
)

Copy = tuple[int, int]
"""The :class:`~qemu_svm.stream.ram.runs.PageKind` and ``data`` of a copy of a page."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Numbers of pages in a range of a block.

    :param kinds: by the :class:`~qemu_svm.stream.ram.runs.PageKind` of the last copy.
    :param repeated: pages sent more than once.
    :param most: copies of the page that was sent most often, up to 255.
    """

    kinds: Sequence[int]
    repeated: int
    most: int

    def plus(self, other: Tally) -> Tally:
        """Return the numbers of these pages and of other ones."""
        kinds = tuple(map(add, self.kinds, other.kinds))
        return Tally(kinds, self.repeated + other.repeated, max(self.most, other.most))

    @property
    def sent(self) -> int:
        """Pages that were sent."""
        return sum(self.kinds)

    @property
    def zero(self) -> int:
        """Pages that are zero at the end."""
        return self.kinds[PageKind.ZERO] + self.kinds[PageKind.ABSENT]

    @property
    def data(self) -> int:
        """Pages with content at the end."""
        return self.sent - self.zero


_TALLIED = 1 << 14  # rows that are counted at once


class Final(ABC):
    """The last copies of the pages of one block."""

    @abstractmethod
    def rows(self, first: int, end: int) -> Iterator[Columns]:
        """Yield the runs of the pages from ``first`` to before ``end``, some at a time."""

    @abstractmethod
    def tally(self, first: int, end: int) -> Tally:
        """Return the numbers of the pages from ``first`` to before ``end``."""

    def within(self, first: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the runs of the pages from ``first`` to before ``end``.

        Each is ``(page, count, kind, data)``.
        """
        for wheres, counts, datas in self.rows(first, end):
            for where, count, data in zip(wheres, counts, datas, strict=True):
                yield where >> KIND_BITS, count, where & KIND, data

    def next_sent(self, page: int, end: int) -> int:
        """Return the first page from ``page`` on that was sent; ``end`` if none before it was."""
        found = next(self.within(page, end), None)
        return end if found is None else found[0]

    def copy(self, page: int) -> Copy | None:
        """Return the last copy of a page; None if it was never sent."""
        found = next(self.within(page, page + 1), None)
        return None if found is None else found[2:]

    def before(self, page: int) -> tuple[Copy | None, Sequence[int]]:
        """Return what the last copy of a page is made of, if that is a delta (XBZRLE).

        :returns: the copy before all deltas, None if there is none; and ``data`` of the
            deltas, the oldest first.
        """
        return self.copy(page), ()


class FinalRuns(Final):
    """The last copies of the pages of a block whose pages were sent in records.

    :param since: only what was sent after this result of ``RamRuns.seal``.
    """

    def __init__(self, runs: RamRuns, block: int, since: int = 0) -> None:
        self._runs = runs
        self._strides = runs.strides
        self._block = block
        self._where: Sequence[int]
        self._count: Sequence[int]
        self._data: Sequence[int]
        self._times: Sequence[int] | None = None
        self._first = 0
        self._deltas: Deltas | None = None
        self._few = runs.few
        if self._few:
            sent = runs.columns(block, since)
            found = settle(*sent, runs.page_size)
            self._where, self._count, self._data = found[:3] if found else sent
            self._times = found[3] if found else None
            self._end = len(self._where)
        else:
            from qemu_svm.stream.ram.portions import settled

            span = settled(runs, settle, since).span(block)
            self._where, self._count, self._data, self._times = span.rows.columns
            self._first, self._end = span.first, span.end

    def _range(self, first: int, end: int) -> tuple[int, int]:
        # The rows that have pages from ``first`` to before ``end``.
        if first >= end:
            return self._first, self._first
        low = bisect_right(self._where, first << KIND_BITS | KIND, self._first, self._end) - 1
        if low < self._first or (self._where[low] >> KIND_BITS) + self._count[low] <= first:
            low += 1
        return low, bisect_left(self._where, end << KIND_BITS, low, self._end)

    def rows(self, first: int, end: int) -> Iterator[Columns]:
        """Yield the runs of the pages from ``first`` to before ``end``, some at a time."""
        low, high = self._range(first, end)
        for at in range(low, high, PIECE):
            stop = min(at + PIECE, high)
            rows = self._where[at:stop], self._count[at:stop], self._data[at:stop]
            if at == low or stop == high:
                rows = self._clipped(rows, first, end)
            yield rows

    def _clipped(self, rows: Columns, first: int, end: int) -> Columns:
        # The same without the pages of its first and last row that are outside.
        where, count, data = rows
        over = (where[-1] >> KIND_BITS) + count[-1] - end
        under = first - (where[0] >> KIND_BITS)
        if over <= 0 and under <= 0:
            return rows
        where, count, data = array("Q", where), array("I", count), array("Q", data)
        if over > 0:
            count[-1] -= over
        if under > 0:
            count[0] -= under
            data[0] += under * self._strides[where[0] & KIND]
            where[0] += under << KIND_BITS
        return where, count, data

    def tally(self, first: int, end: int) -> Tally:
        """Return the numbers of the pages from ``first`` to before ``end``."""
        low, high = self._range(first, end)
        if self._few:
            return Tally(*tally((self._where, self._count, self._times), (first, end), (low, high)))
        assert self._times is not None
        whole = Tally((0,) * KINDS, 0, 0)
        for at in range(low, high, _TALLIED):
            part = slice(at, min(at + _TALLIED, high))
            rows = self._where[part], self._count[part], self._times[part]
            whole = whole.plus(Tally(*tally(rows, (first, end), (0, len(rows[0])))))
        return whole

    def copy(self, page: int) -> Copy | None:
        """Return the last copy of a page; None if it was never sent."""
        row = bisect_right(self._where, page << KIND_BITS | KIND, self._first, self._end) - 1
        if row < self._first:
            return None
        where = self._where[row]
        into = page - (where >> KIND_BITS)
        if into >= self._count[row]:
            return None
        kind = where & KIND
        return kind, self._data[row] + into * self._strides[kind]

    def before(self, page: int) -> tuple[Copy | None, Sequence[int]]:
        """Return the copy before the deltas of a page, and the deltas."""
        if self._deltas is None:
            if self._few:
                sent = self._runs.columns(self._block)
                self._deltas = Deltas((sent[0], sent[2]), self._strides)
                self._deltas.want(self._block, self._where)
                self._deltas.read(iter(((self._block, *sent),)))
            else:
                from qemu_svm.stream.ram.portions import settled

                self._deltas = settled(self._runs, settle).deltas()
        return self._deltas.of(self._block, page)


def settle_compiled(
    where: Sequence[int],
    count: Sequence[int],
    data: Sequence[int],
    page_size: int,
    times: Sequence[int] | None = None,
) -> Settled | None:
    """Do the work of :func:`~qemu_svm.stream.ram.settle.settle_runs` in C."""
    found = compiled.ram.settle(where, count, data, page_size, times)
    if found is None:
        return None
    where, count, data, times = (memoryview(part) for part in found)
    return where.cast("Q"), count.cast("I"), data.cast("Q"), times


settle: Settle
tally: Callable[
    [
        tuple[Sequence[int], Sequence[int], Sequence[int] | None],
        tuple[int, int],
        tuple[int, int],
    ],
    tuple[tuple[int, ...], int, int],
]
if compiled.ram is None:
    from qemu_svm.stream.ram.settle import settle_runs, tally_runs

    settle, tally = settle_runs, tally_runs
else:
    settle, tally = settle_compiled, compiled.ram.tally


def final_of(runs: RamRuns, block: int) -> Final:
    """Return the last copies of the pages of a block."""
    mapped = runs.mapped.get(block)
    return FinalRuns(runs, block) if mapped is None else mapped
