"""Runs in the order of the pages, from runs in the order of sending; and numbers of pages.

The same is in C (``_ram_settle.c``); this runs where there was no compiler.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence

from qemu_svm.stream.ram.runs import KIND, KIND_BITS, KINDS, RamRuns, Settled

MOST_TIMES = 255
"""Copies of a page are counted up to this number."""

Numbers = tuple[tuple[int, ...], int, int]
"""The parameters of :class:`~qemu_svm.stream.ram.final.Tally`."""


def settle_runs(
    where: Sequence[int],
    count: Sequence[int],
    data: Sequence[int],
    page_size: int,
    times: Sequence[int] | None = None,
) -> Settled | None:
    """Return the last copies of pages from runs in the order of sending.

    None if the runs are in the order of their pages already, and none overlap.

    :param times: number of copies of the pages of each run; None if each has one.
    """
    ends = [(place >> KIND_BITS) + pages for place, pages in zip(where, count, strict=True)]
    if all(where[at] >> KIND_BITS >= ends[at - 1] for at in range(1, len(ends))):
        return None
    strides = RamRuns(page_size).strides
    final = array("Q"), array("I"), array("Q"), array("B")
    last = -1
    order = array("I", sorted(range(len(ends)), key=where.__getitem__))
    newest: list[tuple[int, int]] = []  # of the runs that have the present page; the end
    active: list[tuple[int, int]] = []  # their ends and copies
    page, upcoming, copies = 0, 0, 0
    while upcoming < len(order) or active:
        to = where[order[upcoming]] >> KIND_BITS if upcoming < len(order) else active[0][0]
        if active:
            to = min(to, active[0][0])
            if to > page:
                run, often = -newest[0][0], min(copies, MOST_TIMES)
                if run == last and final[3][-1] == often and _end(final) == page:
                    final[1][-1] += to - page
                else:
                    kind, first = where[run] & KIND, where[run] >> KIND_BITS
                    final[0].append(page << KIND_BITS | kind)
                    final[1].append(to - page)
                    final[2].append(data[run] + (page - first) * strides[kind])
                    final[3].append(often)
                    last = run
        page = to
        while active and active[0][0] == page:
            copies -= heapq.heappop(active)[1]
        while upcoming < len(order) and where[order[upcoming]] >> KIND_BITS == page:
            run = order[upcoming]
            if count[run]:
                heapq.heappush(newest, (-run, ends[run]))
                each = 1 if times is None else times[run]
                heapq.heappush(active, (ends[run], each))
                copies += each
            upcoming += 1
        while newest and newest[0][1] <= page:
            heapq.heappop(newest)
    return final


def _end(final: tuple[array[int], array[int], array[int], array[int]]) -> int:
    return (final[0][-1] >> KIND_BITS) + final[1][-1]


def tally_runs(
    runs: tuple[Sequence[int], Sequence[int], Sequence[int] | None],
    pages: tuple[int, int],
    rows: tuple[int, int],
) -> Numbers:
    """Count pages.

    :param runs: ``where``, ``count`` and number of copies of runs that do not overlap.
    :param pages: first page, and the one after the last.
    :param rows: first run, and the one after the last.
    """
    (where, count, times), (first, end) = runs, pages
    kinds = [0] * KINDS
    repeated = most = 0
    for at in range(*rows):
        page = where[at] >> KIND_BITS
        many = min(page + count[at], end) - max(page, first)
        if many <= 0:
            continue
        copies = 1 if times is None else times[at]
        kinds[where[at] & KIND] += many
        repeated += many if copies > 1 else 0
        most = max(most, copies)
    return tuple(kinds), repeated, most
