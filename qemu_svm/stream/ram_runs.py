"""Where each page lies in the input, as runs.

Pages come in order, so most of a stream is a few long runs: the same kind of
record for one page after the other, at a fixed distance.  A run is kept as 20
bytes in flat arrays, whatever its length; a list of *sweeps* (runs of one
block with rising addresses, as one pass over the RAM makes them) says which
block they belong to and makes them searchable.

``data`` is where the first page's content is: a whole page, the fill byte of
a zero page, or what follows the header of an encoded one.  Its top byte is
the number of the input: 0 is the stream, the others are multifd channels.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

INPUT_SHIFT = 56
"""Position of the input's number in ``data``."""

_OFFSET = (1 << INPUT_SHIFT) - 1
_KIND_BITS = 3
_MOST = (1 << 32) - 1


class PageKind(IntEnum):
    """How a page is written."""

    ZERO = 1
    """One byte that fills the page (0 in every stream of today)."""
    PAGE = 2
    """The page itself, behind a record's header."""
    XBZRLE = 3
    """What changed in the page; the length is in front."""
    COMPRESSED = 4
    """A zlib stream; the length is in front."""
    PLACED = 5
    """The page itself, next to its neighbours: mapped-ram, multifd."""
    ABSENT = 6
    """Nothing is stored, the page is zero: mapped-ram, multifd."""


@dataclass(frozen=True, slots=True)
class Run:
    """Pages of one kind, one after the other.

    :param block: index of the RAM block.
    :param page: number of the first page in the block.
    :param count: how many pages.
    :param source: which input: 0 the stream, else a channel.
    :param data: offset of the first page's content in that input.
    :param stride: from one page's content to the next one's.
    """

    block: int
    page: int
    count: int
    kind: PageKind
    source: int
    data: int
    stride: int


class RamRuns:
    """All runs of a stream, in the order in which they were sent."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.strides = {
            PageKind.ZERO: 9,
            PageKind.PAGE: 8 + page_size,
            PageKind.XBZRLE: 0,
            PageKind.COMPRESSED: 0,
            PageKind.PLACED: page_size,
            PageKind.ABSENT: 0,
        }
        self.records = 0
        self._data = array("Q")
        self._where = array("Q")  # page << 3 | kind: rises within a sweep
        self._count = array("I")
        self._sweep_block = array("I")
        self._sweep_first = array("Q")  # index of its first run
        self._of_block: dict[int, array[int]] = {}
        # What the next run has to be to lengthen the last one, or its sweep.
        self._block = -1
        self._where_next = -1
        self._data_next = -1
        self._page_next = 0

    def __len__(self) -> int:
        return len(self._data)

    def add(self, block: int, page: int, count: int, kind: int, data: int) -> None:
        """Add pages behind all others."""
        self.records += count
        where = page << _KIND_BITS | kind
        stride = self.strides[kind]  # type: ignore[index]  # an IntEnum's value finds its member
        if block == self._block:
            if where == self._where_next and (data == self._data_next or not (data or stride)):
                total = self._count[-1] + count
                if total <= _MOST and kind not in (PageKind.XBZRLE, PageKind.COMPRESSED):
                    self._count[-1] = total
                    self._page_next += count
                    self._where_next += count << _KIND_BITS
                    self._data_next = data + count * stride
                    return
            if page < self._page_next:
                self._sweep(block)
        else:
            self._sweep(block)
        self._data.append(data)
        self._where.append(where)
        self._count.append(count)
        self._page_next = page + count
        self._where_next = where + (count << _KIND_BITS)
        self._data_next = data + count * stride

    def _sweep(self, block: int) -> None:
        self._block = block
        self._of_block.setdefault(block, array("Q")).append(len(self._sweep_first))
        self._sweep_block.append(block)
        self._sweep_first.append(len(self._data))

    def drop_last(self) -> None:
        """Forget the last page: the input ends inside it."""
        if self._count and self._count[-1]:
            self._count[-1] -= 1
            self.records -= 1
            self._where_next = -1

    def raw(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Every run as ``(block, page, count, kind, data)``; quick."""
        ends = [*self._sweep_first, len(self._data)][1:]
        low = (1 << _KIND_BITS) - 1
        for block, first, end in zip(self._sweep_block, self._sweep_first, ends, strict=True):
            rows = zip(
                self._where[first:end], self._count[first:end], self._data[first:end], strict=True
            )
            for where, count, data in rows:
                yield block, where >> _KIND_BITS, count, where & low, data

    def __iter__(self) -> Iterator[Run]:
        for row in self.raw():
            yield self._run(*row)

    def _run(self, block: int, page: int, count: int, kind: int, data: int) -> Run:
        of = PageKind(kind)
        return Run(block, page, count, of, data >> INPUT_SHIFT, data & _OFFSET, self.strides[of])

    def history(self, block: int, page: int) -> Iterator[tuple[PageKind, int, int]]:
        """Every copy of a page, the newest first: ``(kind, source, data)``."""
        key = (page + 1) << _KIND_BITS
        low = (1 << _KIND_BITS) - 1
        last = len(self._sweep_first) - 1
        for sweep in reversed(self._of_block.get(block, ())):
            first = self._sweep_first[sweep]
            end = self._sweep_first[sweep + 1] if sweep < last else len(self._data)
            index = bisect_right(self._where, key, first, end) - 1
            if index < first:
                continue
            where = self._where[index]
            behind = page - (where >> _KIND_BITS)
            if behind < self._count[index]:
                kind = PageKind(where & low)
                data = self._data[index] + behind * self.strides[kind]
                yield kind, data >> INPUT_SHIFT, data & _OFFSET
