"""What pages are made of that were sent as XBZRLE deltas."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from qemu_svm.stream.ram.column import Column
from qemu_svm.stream.ram.runs import KIND, KIND_BITS, PageKind

_XBZRLE = int(PageKind.XBZRLE)


class Deltas:
    """For each page whose last copy is a delta, the copies that it is made of.

    Each run of one delta (it has one page) notes the run that had the page before it.

    :param sent: ``where`` and ``data`` of the runs that :meth:`read` is given.
    """

    def __init__(
        self, sent: tuple[Sequence[int], Sequence[int]], strides: Mapping[int, int]
    ) -> None:
        self._sent, self._strides = sent, strides
        # Of each block the pages, and the last run of each.  0 means no run, so the
        # numbers start at 1.
        self._pages: dict[int, tuple[array[int], array[int]]] = {}
        self._before = Column("I")

    def want(self, block: int, final: Sequence[int]) -> None:
        """Ask for the pages of a block whose last copies are deltas.

        :param final: ``where`` of the last copies, in the order of the pages; in several
            calls, if need be.
        """
        found = array("Q", (where >> KIND_BITS for where in final if where & KIND == _XBZRLE))
        pages, last = self._pages.setdefault(block, (array("Q"), array("I")))
        pages += found
        last += array("I", bytes(4 * len(found)))

    def read(self, runs: Iterator[tuple[int, Sequence[int], Sequence[int], Sequence[int]]]) -> None:
        """Read all runs in the order of sending."""
        number = 0
        nothing: tuple[array[int], array[int]] = (array("Q"), array("I"))
        for block, wheres, counts, _ in runs:
            pages, last = self._pages.get(block, nothing)
            many = len(pages)
            before = array("I", bytes(4 * len(wheres)))
            for row, (where, count) in enumerate(zip(wheres, counts, strict=True)):
                page = where >> KIND_BITS
                at = bisect_left(pages, page)
                end = page + count
                while at < many and pages[at] < end:
                    if where & KIND == _XBZRLE:
                        before[row] = last[at]
                    last[at] = number + row + 1
                    at += 1
            number += len(wheres)
            self._before.extend(before)

    def of(self, block: int, page: int) -> tuple[tuple[int, int] | None, Sequence[int]]:
        """Return the copy before the deltas of a page, and ``data`` of these, the oldest first."""
        where, data = self._sent
        pages, last = self._pages[block]
        deltas = array("Q")
        number = last[bisect_left(pages, page)]
        whole = None
        while number:
            run = where[number - 1]
            kind = run & KIND
            if kind != _XBZRLE:
                into = page - (run >> KIND_BITS)
                whole = kind, data[number - 1] + into * self._strides[kind]
                break
            deltas.append(data[number - 1])
            number = self._before[number - 1]
        deltas.reverse()
        return whole, deltas
