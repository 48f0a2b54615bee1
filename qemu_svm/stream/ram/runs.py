"""Where each page is in the input, as runs.

Pages are sent in order, so most of a stream is a few long runs: records of one kind
for consecutive pages, at a fixed distance.  A run takes 20 bytes in flat arrays,
whatever its length; a list of *sweeps* (runs of one block with increasing addresses,
as one pass over the RAM sends them) gives their blocks and makes them searchable.

A run also has the place of the first page's content: a whole page, the byte that
fills it, or the bytes after the header of an encoded one.  A :class:`Place` is an
input and an offset; in the arrays (here, in :mod:`~qemu_svm.stream.ram.extract` and
in C) both are packed into one number, ``data``, with the input in its top byte.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

from qemu_svm.stream.records import RamPages

INPUT_SHIFT = 56
"""Position of the input in ``data``; offsets are below ``1 << INPUT_SHIFT``."""

KIND_BITS = 3
"""Bits of a run's ``where`` below the page: the :class:`PageKind`."""
KINDS = 1 << KIND_BITS
KIND = KINDS - 1
"""Mask for the kind in ``where``."""

_OFFSET = (1 << INPUT_SHIFT) - 1
_MOST = (1 << 32) - 1
_PIECE = 4096
_ROOM = 4096


class PageKind(IntEnum):
    """How a page is stored."""

    ZERO = 1
    """A zero page; its record has a zero byte as content."""
    PAGE = 2
    """The page itself, after a record's header."""
    XBZRLE = 3
    """The length and the bytes that changed."""
    COMPRESSED = 4
    """The length and a zlib stream."""
    PLACED = 5
    """The page itself, without a header: mapped-ram, multifd."""
    ABSENT = 6
    """A zero page that is not stored: mapped-ram, multifd."""
    FILLED = 7
    """A page filled with one byte that is not zero; no current sender writes it."""


class Place(NamedTuple):
    """A place in the inputs.

    :param input: 0 is the stream, the others are channels.
    :param offset: in that input.
    """

    input: int
    offset: int

    def plus(self, size: int) -> Place:
        """Return the place ``size`` bytes later in the same input."""
        return Place(self.input, self.offset + size)


NOWHERE = Place(0, 0)
"""For pages without content in any input."""


def unpack(data: int) -> Place:
    """Return the place that ``data`` stands for."""
    return Place(data >> INPUT_SHIFT, data & _OFFSET)


def page_counts(sums: Sequence[int]) -> RamPages:
    """Return numbers of pages by :class:`PageKind` as the kinds of records on the wire."""
    return RamPages(
        sums[PageKind.PAGE] + sums[PageKind.PLACED],
        sums[PageKind.ZERO] + sums[PageKind.ABSENT] + sums[PageKind.FILLED],
        sums[PageKind.XBZRLE],
        sums[PageKind.COMPRESSED],
    )


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive pages of one kind.

    :param block: index of the RAM block.
    :param page: number of the first page in the block.
    :param count: number of pages.
    :param place: of the first page's content.
    :param stride: bytes from one page's content to the next one's.
    """

    block: int
    page: int
    count: int
    kind: PageKind
    place: Place
    stride: int


@dataclass(slots=True)
class Rows:
    """Arrays that a scanner fills, one row for each run.

    ``where`` and ``count`` are as in :class:`RamRuns`, ``data`` is an offset.
    """

    room: int = _ROOM
    data: array[int] = field(init=False)
    where: array[int] = field(init=False)
    count: array[int] = field(init=False)

    def __post_init__(self) -> None:
        self.data = array("Q", bytes(8 * self.room))
        self.where = array("Q", bytes(8 * self.room))
        self.count = array("I", bytes(4 * self.room))


class RamRuns:
    """All runs of a stream, in the order in which they were sent.

    ``sums`` has the number of pages of each kind; each copy counts.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.strides: dict[int, int] = {
            PageKind.ZERO: 9,
            PageKind.PAGE: 8 + page_size,
            PageKind.XBZRLE: 0,
            PageKind.COMPRESSED: 0,
            PageKind.PLACED: page_size,
            PageKind.ABSENT: 0,
            PageKind.FILLED: 9,
        }
        self.sums = [0] * KINDS
        self._data = array("Q")
        self._where = array("Q")  # page << 3 | kind: increases within a sweep
        self._count = array("I")
        self._sweep_block = array("I")
        self._sweep_first = array("Q")  # index of its first run
        self._of_block: dict[int, array[int]] = {}
        # What the next run must be to extend the last one, or its sweep.
        self._block = -1
        self._where_next = -1
        self._data_next = -1
        self._page_next = 0

    @property
    def records(self) -> int:
        """Number of pages that were sent; each copy counts."""
        return sum(self.sums)

    def __len__(self) -> int:
        return len(self._data)

    def add(self, block: int, page: int, count: int, kind: int, place: Place) -> None:
        """Append pages, which are sent after all others."""
        data = place.input << INPUT_SHIFT | place.offset
        self.sums[kind] += count
        where = page << KIND_BITS | kind
        stride = self.strides[kind]
        if block == self._block:
            if where == self._where_next and (data == self._data_next or not (data or stride)):
                total = self._count[-1] + count
                if total <= _MOST and kind not in (PageKind.XBZRLE, PageKind.COMPRESSED):
                    self._count[-1] = total
                    self._page_next += count
                    self._where_next += count << KIND_BITS
                    self._data_next = data + count * stride
                    return
            if page < self._page_next:
                self._sweep(block)
        else:
            self._sweep(block)
        self._data.append(data)
        self._where.append(where)
        self._count.append(count)
        self._expect(where, count, data)

    def extend(
        self, block: int, rows: Rows, used: int, sums: Iterable[int], source: int = 0
    ) -> None:
        """Append the first ``used`` rows, of increasing pages of one block.

        :param sums: the number of pages of each kind in all of them.
        :param source: the input that was scanned.
        """
        first, count = rows.where[0], rows.count[0]
        self.add(block, first >> KIND_BITS, count, first & KIND, Place(source, rows.data[0]))
        self.sums[first & KIND] -= count
        for kind, pages in enumerate(sums):
            self.sums[kind] += pages
        if used == 1:
            return
        if source:
            self._data.extend(source << INPUT_SHIFT | offset for offset in rows.data[1:used])
        else:
            self._data += rows.data[1:used]
        self._where += rows.where[1:used]
        self._count += rows.count[1:used]
        self._expect(rows.where[used - 1], rows.count[used - 1], self._data[-1])

    def _expect(self, where: int, count: int, data: int) -> None:
        # Note what the next run must be to extend this one.
        self._page_next = (where >> KIND_BITS) + count
        self._where_next = where + (count << KIND_BITS)
        self._data_next = data + count * self.strides[where & KIND]

    def _sweep(self, block: int) -> None:
        self._block = block
        self._of_block.setdefault(block, array("Q")).append(len(self._sweep_first))
        self._sweep_block.append(block)
        self._sweep_first.append(len(self._data))

    def seal(self) -> int:
        """Prevent later pages from extending the present runs.

        :returns: their number.
        """
        self._where_next = -1
        return len(self)

    def drop_last(self) -> None:
        """Remove the last page, because the input ends inside it."""
        if self._count and self._count[-1]:
            self._count[-1] -= 1
            self.sums[self._where[-1] & KIND] -= 1
            self._where_next = -1

    def pieces(self) -> Iterator[tuple[int, array[int], array[int], array[int]]]:
        """Yield all runs as ``(block, where, count, data)``, up to 4096 of one block at a time.

        The arrays are copies.
        """
        ends = [*self._sweep_first, len(self._data)][1:]
        for block, first, end in zip(self._sweep_block, self._sweep_first, ends, strict=True):
            for at in range(first, end, _PIECE):
                part = slice(at, min(at + _PIECE, end))
                yield block, self._where[part], self._count[part], self._data[part]

    def spans(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield all runs as ``(block, page, count, kind)``; faster than iterating."""
        for block, wheres, counts, _ in self.pieces():
            for where, count in zip(wheres, counts, strict=True):
                yield block, where >> KIND_BITS, count, where & KIND

    def __iter__(self) -> Iterator[Run]:
        for block, wheres, counts, datas in self.pieces():
            for where, count, data in zip(wheres, counts, datas, strict=True):
                yield self._run(block, where, count, data)

    def at(self, index: int) -> tuple[int, int, PageKind, Place]:
        """Return the run at ``index``, in the order of sending: ``(page, count, kind, place)``."""
        where = self._where[index]
        kind = PageKind(where & KIND)
        return where >> KIND_BITS, self._count[index], kind, unpack(self._data[index])

    def _run(self, block: int, where: int, count: int, data: int) -> Run:
        kind = PageKind(where & KIND)
        return Run(block, where >> KIND_BITS, count, kind, unpack(data), self.strides[kind])

    def history(self, block: int, page: int) -> Iterator[tuple[PageKind, Place]]:
        """Yield all copies of a page as ``(kind, place)``, the newest first."""
        key = (page + 1) << KIND_BITS
        last = len(self._sweep_first) - 1
        for sweep in reversed(self._of_block.get(block, ())):
            first = self._sweep_first[sweep]
            end = self._sweep_first[sweep + 1] if sweep < last else len(self._data)
            index = bisect_right(self._where, key, first, end) - 1
            if index < first:
                continue
            where = self._where[index]
            into = page - (where >> KIND_BITS)
            if into < self._count[index]:
                kind = PageKind(where & KIND)
                data = self._data[index] + into * self.strides[kind]
                yield kind, unpack(data)

    def within(self, block: int, first: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the parts of runs that are in the pages from ``first`` to before ``end``.

        Each is ``(page, count, kind, data)``, in the order of sending.
        """
        last = len(self._sweep_first) - 1
        for sweep in self._of_block.get(block, ()):
            start = self._sweep_first[sweep]
            stop = self._sweep_first[sweep + 1] if sweep < last else len(self._data)
            index = bisect_right(self._where, (first + 1) << KIND_BITS, start, stop) - 1
            for at in range(max(index, start), stop):
                where = self._where[at]
                page, kind = where >> KIND_BITS, where & KIND
                if page >= end:
                    break
                skip = max(0, first - page)
                count = min(self._count[at], end - page) - skip
                if count > 0:
                    yield page + skip, count, kind, self._data[at] + skip * self.strides[kind]
