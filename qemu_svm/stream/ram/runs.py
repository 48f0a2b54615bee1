"""Where each page is in the input, as runs.

Pages are sent in order, so most of a stream is a few long runs: records of one kind
for consecutive pages, at a fixed distance.  A run takes 20 bytes in flat columns,
whatever its length; a list of *parts* (runs of one block that follow one another) gives
their blocks.  Most of very many runs are in a temporary file.  The pages of mapped-ram
have no runs: their bitmap is read in the input
(:class:`~qemu_svm.stream.ram.mapped.MappedPages`).

A run also has the place of the first page's content: a whole page, the byte that
fills it, or the bytes after the header of an encoded one.  A :class:`Place` is an
input and an offset; in the arrays (here, in :mod:`~qemu_svm.stream.ram.final` and
in C) both are packed into one number, ``data``, with the input in its top byte.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from qemu_svm.stream.ram.column import Column
from qemu_svm.stream.records import RamPages

if TYPE_CHECKING:
    from qemu_svm.stream.ram.mapped import MappedPages
    from qemu_svm.stream.ram.portions import SettledBlocks

INPUT_SHIFT = 56
"""Position of the input in ``data``; offsets are below ``1 << INPUT_SHIFT``."""

KIND_BITS = 3
"""Bits of a run's ``where`` below the page: the :class:`PageKind`."""
KINDS = 1 << KIND_BITS
KIND = KINDS - 1
"""Mask for the kind in ``where``."""

_OFFSET = (1 << INPUT_SHIFT) - 1
_MOST = (1 << 32) - 1
PIECE = 4096
"""Most runs of a piece."""
_WINDOW = 4 * PIECE  # runs that are read at once
_MOST_PARTS = 1 << 16
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


Numbers: TypeAlias = "array[int] | memoryview"
"""A column, or part of it."""

Columns = tuple[Sequence[int], Sequence[int], Sequence[int]]
"""``where``, ``count`` and ``data`` of runs: arrays, or views of them."""

Settled = tuple[Numbers, Numbers, Numbers, Numbers]
"""The columns of runs that do not overlap, and the number of copies of their pages."""


Settle = Callable[..., Settled | None]
"""A function as :func:`~qemu_svm.stream.ram.settle.settle_runs`, which has its parameters."""


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

    ``sums`` has the number of pages of each kind; each copy counts.  ``mapped`` has the
    bitmaps of mapped-ram by the number of the block; ``settled`` what
    :func:`~qemu_svm.stream.ram.portions.settled` has made of them.
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
        self.mapped: dict[int, MappedPages] = {}
        self._data = Column("Q")
        self._where = Column("Q")  # page << 3 | kind
        self._count = Column("I")
        self._part_block = Column("I")
        self._part_first = Column("Q")  # index of its first run
        self._of_block: dict[int, array[int]] = {}  # parts, while there are few
        self._pages: dict[int, int] = {}  # of each block, without those of a bitmap
        self.settled: SettledBlocks | None = None
        # What the next run must be to extend the last one.
        self._block = -1
        self._where_next = -1
        self._data_next = -1

    @property
    def records(self) -> int:
        """Number of pages that were sent; each copy counts."""
        return sum(self.sums)

    def __len__(self) -> int:
        return len(self._data) + sum(pages.runs for pages in self.mapped.values())

    def map_block(self, block: int, pages: MappedPages) -> None:
        """Take all pages of a block from a bitmap."""
        self.mapped[block] = pages
        self.sums[PageKind.PLACED] += pages.stored
        self.sums[PageKind.ABSENT] += pages.block.count - pages.stored

    def add(self, block: int, page: int, count: int, kind: int, place: Place) -> None:
        """Append pages, which are sent after all others."""
        data = place.input << INPUT_SHIFT | place.offset
        self.sums[kind] += count
        self._pages[block] = self._pages.get(block, 0) + count
        where = page << KIND_BITS | kind
        stride = self.strides[kind]
        if block != self._block:
            self._part(block)
        elif where == self._where_next and (data == self._data_next or not (data or stride)):
            total = self._count[-1] + count
            if total <= _MOST and kind not in (PageKind.XBZRLE, PageKind.COMPRESSED):
                self._count.replace_last(total)
                self._where_next += count << KIND_BITS
                self._data_next = data + count * stride
                return
        self._data.append(data)
        self._where.append(where)
        self._count.append(count)
        self._expect(where, count, data)

    def extend(
        self, block: int, rows: Rows, used: int, sums: Iterable[int], source: int = 0
    ) -> None:
        """Append the first ``used`` rows, of pages of one block.

        :param sums: the number of pages of each kind in all of them.
        :param source: the input that was scanned.
        """
        first, count = rows.where[0], rows.count[0]
        self.add(block, first >> KIND_BITS, count, first & KIND, Place(source, rows.data[0]))
        self.sums[first & KIND] -= count
        self._pages[block] += sum(sums) - count
        for kind, pages in enumerate(sums):
            self.sums[kind] += pages
        if used == 1:
            return
        if source:
            places = (source << INPUT_SHIFT | offset for offset in rows.data[1:used])
            self._data.extend(array("Q", places))
        else:
            self._data.extend(rows.data[1:used])
        self._where.extend(rows.where[1:used])
        self._count.extend(rows.count[1:used])
        self._expect(rows.where[used - 1], rows.count[used - 1], self._data[-1])

    def _expect(self, where: int, count: int, data: int) -> None:
        # Note what the next run must be to extend this one.
        self._where_next = where + (count << KIND_BITS)
        self._data_next = data + count * self.strides[where & KIND]

    def _part(self, block: int) -> None:
        self._block = block
        if len(self._part_first) < _MOST_PARTS:
            self._of_block.setdefault(block, array("Q")).append(len(self._part_first))
        self._part_block.append(block)
        self._part_first.append(len(self._data))

    def records_of(self, block: int) -> int:
        """Number of pages of a block that were sent; each copy counts."""
        mapped = self.mapped.get(block)
        return self._pages.get(block, 0) + (0 if mapped is None else mapped.block.count)

    def seal(self) -> int:
        """Prevent later pages from extending the present runs.

        :returns: their number, without those of bitmaps.
        """
        self._where_next = -1
        return len(self._data)

    def drop_last(self) -> None:
        """Remove the last page, because the input ends inside it."""
        if self._count:
            self._count.replace_last(self._count[-1] - 1)
            self.sums[self._where[-1] & KIND] -= 1
            self._pages[self._block] -= 1
            self._where_next = -1
            if not self._count[-1]:
                for column in (self._data, self._where, self._count):
                    column.pop()

    @property
    def few(self) -> bool:
        """Whether all runs are in memory; else there are no :meth:`columns`."""
        return not self._data.stored and len(self._part_first) <= _MOST_PARTS

    @property
    def sent(self) -> tuple[Column, Column]:
        """``where`` and ``data`` of all runs in the order of sending, without those of bitmaps."""
        return self._where, self._data

    def columns(self, block: int, since: int = 0) -> Columns:
        """Return the runs of a block, in the order of sending, without those of a bitmap.

        Nothing may be appended while the result is in use; there are :attr:`few`.

        :param since: a result of :meth:`seal`: only runs that were appended later.
        """
        parts = [part for part in self._parts(self._of_block.get(block, ())) if part.stop > since]
        parts = [slice(max(part.start, since), part.stop) for part in parts]
        if len(parts) == 1:
            views = (column.whole() for column in (self._where, self._count, self._data))
            where, count, data = (view[parts[0]] for view in views)
            return where, count, data
        joined = array("Q"), array("I"), array("Q")
        for column, source in zip(joined, (self._where, self._count, self._data), strict=True):
            for part in parts:
                column.extend(source[part])
        return joined

    def _parts(self, numbers: Iterable[int]) -> Iterator[slice]:
        last = len(self._part_first) - 1
        for number in numbers:
            end = self._part_first[number + 1] if number < last else len(self._data)
            yield slice(self._part_first[number], end)

    def _spans(self) -> Iterator[tuple[int, int, int]]:
        # The parts in their order: block, first run, and the one after the last.
        parts = len(self._part_first)
        for at in range(0, parts, PIECE):
            firsts = self._part_first[at : at + PIECE + 1]
            if at + PIECE >= parts:
                firsts.append(len(self._data))
            yield from zip(self._part_block[at : at + PIECE], firsts[:-1], firsts[1:], strict=True)

    def ordered(
        self, since: int = 0
    ) -> Iterator[tuple[int, Sequence[int], Sequence[int], Sequence[int]]]:
        """Yield the runs in the order of sending, those of one block at a time.

        As :meth:`pieces`, without those of bitmaps, which have no order.

        :param since: a result of :meth:`seal`: only runs that were appended later.
        """
        low = high = 0
        rows: Columns = (), (), ()
        for block, first, end in self._spans():
            for at in range(max(first, since), end, PIECE):
                stop = min(at + PIECE, end)
                if not low <= at <= stop <= high:
                    low, high = at, at + _WINDOW
                    rows = self._where[low:high], self._count[low:high], self._data[low:high]
                part = slice(at - low, stop - low)
                yield block, rows[0][part], rows[1][part], rows[2][part]

    def pieces(self) -> Iterator[tuple[int, Sequence[int], Sequence[int], Sequence[int]]]:
        """Yield all runs as ``(block, where, count, data)``, some of one block at a time."""
        for block, pages in self.mapped.items():
            for where, count, data in pages.rows(0, pages.block.count):
                yield block, where, count, data
        yield from self.ordered()

    def __iter__(self) -> Iterator[Run]:
        for block, wheres, counts, datas in self.pieces():
            for where, count, data in zip(wheres, counts, datas, strict=True):
                kind = PageKind(where & KIND)
                stride = self.strides[kind]
                yield Run(block, where >> KIND_BITS, count, kind, unpack(data), stride)
