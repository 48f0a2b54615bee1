"""The rounds of a migration, from the order in which pages were sent.

QEMU goes through the RAM blocks in the order of the list, and through each from its first
page to its last; where it has come to the end it begins again with the pages that the guest
has written meanwhile.  So a round begins where a page is sent that is before the last one.

Source: QEMU ``migration/ram.c`` (``find_dirty_block``, ``complete_round``), 5.2 to 11.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise
from operator import gt

from qemu_svm.stream.ram.runs import KIND, KIND_BITS, KINDS, PageKind, RamRuns, unpack

_MOST = 4096
"""More of them are no rounds: a destination that asked for single pages."""


@dataclass(frozen=True, slots=True)
class Round:
    """Pages that were sent in one go through the RAM.

    :param offset: of the first page's content that is in the stream itself; None if none is.
    :param kinds: numbers of pages by :class:`~qemu_svm.stream.ram.runs.PageKind`.
    """

    offset: int | None
    kinds: Sequence[int]

    @property
    def sent(self) -> int:
        """Pages that were sent."""
        return sum(self.kinds)

    @property
    def zero(self) -> int:
        """Of these, zero pages."""
        return self.kinds[PageKind.ZERO] + self.kinds[PageKind.ABSENT]

    @property
    def deltas(self) -> int:
        """Of these, pages that were sent as XBZRLE deltas."""
        return self.kinds[PageKind.XBZRLE]

    @property
    def data(self) -> int:
        """Of these, pages with content that were sent whole."""
        return self.sent - self.zero - self.deltas


def rounds(runs: RamRuns) -> tuple[Round, ...]:
    """Return the rounds in the order of sending; none where pages have no such order.

    That is so for mapped-ram, and where more than 4096 would be found.
    """
    found: list[Round] = []
    kinds, offset = [0] * KINDS, None
    last = (-1, -1)  # the block and the end of its last run
    for block, where, count, data in runs.ordered():
        # Of each run the number after its last page, in the form of ``where``.
        ends = [
            place + (pages << KIND_BITS) & ~KIND for place, pages in zip(where, count, strict=True)
        ]
        begins = {0} if (block, where[0]) < last else set()
        begins.update(compress(range(1, len(where)), map(gt, ends, where[1:])))
        if len(found) + len(begins) > _MOST:
            return ()
        for low, high in _between(sorted(begins), len(where)):
            if low in begins and any(kinds):
                found.append(Round(offset, tuple(kinds)))
                kinds, offset = [0] * KINDS, None
            if offset is None:
                offset = _first(data, low, high)
            for place, pages in zip(where[low:high], count[low:high], strict=True):
                kinds[place & KIND] += pages
        last = (block, ends[-1])
    if any(kinds):
        found.append(Round(offset, tuple(kinds)))
    return tuple(found)


def _between(begins: Sequence[int], end: int) -> Iterator[tuple[int, int]]:
    edges = sorted({0, *begins, end})
    return pairwise(edges)


def _first(data: Sequence[int], low: int, high: int) -> int | None:
    for at in range(low, min(high, low + 8)):
        place = unpack(data[at])
        if place.input == 0 and place.offset:
            return place.offset
    return None
