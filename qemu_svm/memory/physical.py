"""L1-physical memory: flat tables of where each page is in the input.

A table has a word for each page of 128 MiB of the address space and is made from the
last copies of the pages (:class:`~qemu_svm.stream.ram.final.Final`) when it is first
needed; no guest memory is copied.  The words are:

===============  ==================================================================
:data:`NEVER`    RAM that was never sent
:data:`ZERO`     sent, nothing but zeros
:data:`ENCODED`  a compressed page, a difference or the like, decoded when it is read
:data:`NOTHING`  no RAM
others           the page is in the input as it is: number of the input (top byte), offset
===============  ==================================================================
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qemu_svm.errors import AddressError, StreamError
from qemu_svm.memory.layout import Range
from qemu_svm.memory.results import Piece, Run, Status, Step, Walk, fault
from qemu_svm.stream.ram.read import Ram
from qemu_svm.stream.ram.runs import INPUT_SHIFT, PageKind, unpack

NEVER, ZERO, ENCODED, NOTHING = range(4)
FIRST_PLACE = 4
"""The least word that is a place in the input."""

_OFFSET = (1 << INPUT_SHIFT) - 1
_TABLE_BITS = 15  # pages of a table
_MOST_TABLES = 128
_MOST_PAGES = 1024  # decoded pages that are kept
_TOP = 1 << 52
_STATUS = {NEVER: Status.NOT_SENT, NOTHING: Status.NO_RAM}
_ZERO_KINDS = (int(PageKind.ZERO), int(PageKind.ABSENT))
_WHOLE_KINDS = (int(PageKind.PAGE), int(PageKind.PLACED))


@dataclass(frozen=True, slots=True)
class Extent:
    """Pages of one kind that follow one another.

    :param size: in bytes; ``word`` is that of the first page (see above).
    :param stride: from one page to the next in the input, for places.
    """

    address: int
    size: int
    word: int
    stride: int


class Physical:
    """L1-physical address space, read only.

    :param ranges: where the RAM blocks are, in order.
    """

    world = "l1p"

    def __init__(self, ram: Ram, ranges: Sequence[Range]) -> None:
        self.ram = ram
        self.ranges = tuple(ranges)
        self.page_size = ram.page_size
        self._shift = ram.page_size.bit_length() - 1
        self._inside = ram.page_size - 1
        self._table_shift = self._shift + _TABLE_BITS
        self._starts = [one.start for one in self.ranges]
        self._files = [source.backing_file() for source in ram.inputs]
        self._tables: dict[int, array[int]] = {}
        pages = 1 << _TABLE_BITS
        self._alike = [array("Q", (word,)) * pages for word in range(FIRST_PLACE)]
        self._nothing = self._alike[NOTHING]
        self._decoded: dict[int, bytes] = {}

    # Tables.

    def word(self, address: int) -> int:
        """The word for the page of an address."""
        table = self._tables.get(address >> self._table_shift)
        if table is None:
            table = self._make(address >> self._table_shift)
        return table[address >> self._shift & (1 << _TABLE_BITS) - 1]

    def state(self, address: int) -> Status:
        """Whether a page is there: mapped, no-ram or not-sent."""
        return _STATUS.get(self.word(address), Status.MAPPED)

    def _make(self, number: int) -> array[int]:
        start = number << self._table_shift
        end = start + (1 << self._table_shift)
        inside = [one for one in self.ranges if one.start < end and start < one.end]
        if not inside or not 0 <= start < _TOP:
            return self._nothing
        unsent = self._unsent(inside, start, end)
        table = self._alike[NEVER] if unsent else array("Q", self._nothing)
        for one in () if unsent else inside:
            low, high = max(one.start, start), min(one.end, end)
            first = one.offset + low - one.start >> self._shift
            pages = high - low + self._inside >> self._shift
            self._fill(table, low - start >> self._shift, one.block, first, pages)
        while len(self._tables) >= _MOST_TABLES:
            del self._tables[next(iter(self._tables))]
        self._tables[number] = table
        return table

    def _unsent(self, inside: Sequence[Range], start: int, end: int) -> bool:
        # Whether all of it is RAM of one range that was never sent.
        one = inside[0]
        return one.start <= start and end <= one.end and self._next_sent(one, start) >= end

    def _next_sent(self, one: Range, address: int) -> int:
        # The first address of a range from one on that was sent; its end if there is none.
        page, last = (one.offset + at - one.start >> self._shift for at in (address, one.end))
        found = self.ram.final(one.block).next_sent(page, last)
        return one.start + (found << self._shift) - one.offset

    def _fill(self, table: array[int], at: int, block: int, first: int, pages: int) -> None:
        table[at : at + pages] = array("Q", (NEVER,)) * pages
        strides = self.ram.runs.strides
        for page, count, kind, data in self.ram.final(block).within(first, first + pages):
            place = at + page - first
            if kind in _WHOLE_KINDS:
                if count == 1:
                    table[place] = data
                    continue
                stride = strides[kind]
                words = array("Q", range(data, data + count * stride, stride))
            else:
                word = ZERO if kind in _ZERO_KINDS else ENCODED
                words = array("Q", (word,)) * count
            table[place : place + count] = words

    # Reading.

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes.

        :raises AddressError: some of it is not RAM, or was never sent.
        :raises StreamError: what the stream has for it is damaged.
        """
        if address < 0 or size < 0:
            raise AddressError("a negative address or size", address=address)
        if size and address + size <= (address | self._inside) + 1:
            return self._part(address, size)
        return b"".join(self._parts(address, size))

    def _parts(self, address: int, size: int) -> Iterator[bytes]:
        end = address + size
        for extent in self.extents(address & ~self._inside, end + self._inside & ~self._inside):
            if extent.word in _STATUS:
                raise fault(_STATUS[extent.word], max(address, extent.address))
            for place, data in self.content(extent):
                skip = max(0, address - place)
                yield data[skip : end - place]

    def _part(self, address: int, size: int) -> bytes:
        # Inside one page.
        word, offset = self.word(address), address & self._inside
        if word >= FIRST_PLACE:
            return self.ram.read_at(unpack(word).plus(offset), size)
        if word == ZERO:
            return bytes(size)
        if word == ENCODED:
            return self._decode(address & ~self._inside)[offset : offset + size]
        raise fault(_STATUS[word], address)

    def read_u64(self, address: int) -> int:
        """Return the eight bytes at an address as a little-endian number.

        :raises AddressError: as for :meth:`read`.
        :raises StreamError: as for :meth:`read`.
        """
        table = self._tables.get(address >> self._table_shift)
        if table is not None and address & self._inside <= self.page_size - 8:
            word = table[address >> self._shift & 0x7FFF]
            if word >= FIRST_PLACE:
                file = self._files[word >> INPUT_SHIFT]
                if file is not None:
                    place = (word & _OFFSET) + file[1] + (address & self._inside)
                    data = os.pread(file[0], 8, place)
                    if len(data) == 8:
                        return int.from_bytes(data, "little")
            elif word == ZERO:
                return 0
        return int.from_bytes(self.read(address, 8), "little")

    def _decode(self, address: int) -> bytes:
        page = self._decoded.get(address)
        if page is None:
            one = self.range_at(address)
            assert one is not None
            number = one.offset + address - one.start >> self._shift
            page = self.ram.read_page(one.block, number)
            while len(self._decoded) >= _MOST_PAGES:
                del self._decoded[next(iter(self._decoded))]
            self._decoded[address] = page
        return page

    def range_at(self, address: int) -> Range | None:
        """The range that an address is in."""
        at = bisect_right(self._starts, address) - 1
        return self.ranges[at] if at >= 0 and address < self.ranges[at].end else None

    def extents(self, start: int, end: int) -> Iterator[Extent]:
        """All pages from ``start`` to before ``end``, multiples of the page size."""
        while start < end:
            table = self._tables.get(start >> self._table_shift)
            if table is None:
                table = self._make(start >> self._table_shift)
            stop = min(end, ((start >> self._table_shift) + 1) << self._table_shift)
            if table is self._nothing:
                at = bisect_right(self._starts, start)
                stop = min(end, self._starts[at]) if at < len(self._starts) else end
                yield Extent(start, stop - start, NOTHING, 0)
            elif table is self._alike[NEVER]:
                one = self.range_at(start)
                assert one is not None
                stop = min(end, self._next_sent(one, start))
                yield Extent(start, stop - start, NEVER, self.page_size)
            else:
                yield from self._extents(table, start, stop)
            start = stop

    def _extents(self, table: array[int], start: int, stop: int) -> Iterator[Extent]:
        base = start >> self._table_shift << self._table_shift
        at, end = start - base >> self._shift, stop - base >> self._shift
        while at < end:
            word, first = table[at], at
            at += 1
            stride = 0
            if word >= FIRST_PLACE:
                if at < end:
                    stride = table[at] - word
                    # Strides of pages that are written one after the other.
                    if not self.page_size <= stride <= self.page_size + 8:
                        stride = 0
                if stride:
                    at += 1
                    expected = word + 2 * stride
                    while at < end and table[at] == expected:
                        expected += stride
                        at += 1
            elif table[at:end] == self._alike[word][at:end]:
                at = end  # the rest of a table, looked at all at once
            else:
                while at < end and table[at] == word:
                    at += 1
            size = at - first << self._shift
            yield Extent(base + (first << self._shift), size, word, stride or self.page_size)

    def content(self, extent: Extent, most: int = 1 << 20) -> Iterator[tuple[int, bytes]]:
        """The bytes of an extent that has some, at most ``most`` at a time.

        Yields ``(address, bytes)``.

        :raises StreamError: the stream is damaged there.
        """
        size, address, end = self.page_size, extent.address, extent.address + extent.size
        batch = max(1, most // extent.stride) if extent.stride else 1
        while address < end:
            pages = min(batch, end - address >> self._shift)
            if extent.word == ZERO:
                data = bytes(pages * size)
            elif extent.word == ENCODED:
                pages, data = 1, self._decode(address)
            else:
                number = address - extent.address >> self._shift
                place = unpack(extent.word).plus(number * extent.stride)
                many = (pages - 1) * extent.stride + size
                data = self.ram.read_at(place, many)
                if extent.stride != size and pages > 1:
                    view = memoryview(data)
                    data = b"".join([view[at : at + size] for at in range(0, many, extent.stride)])
            yield address, data
            address += pages * size

    def pieces(self, address: int, size: int) -> Iterator[Piece]:
        """Memory and what is missing of it, in order; never raises for either."""
        end = address + size
        inside = self._inside
        for extent in self.extents(address & ~inside, end + inside & ~inside):
            low, high = max(address, extent.address), min(end, extent.address + extent.size)
            status = _STATUS.get(extent.word)
            if status is not None:
                yield Piece(low, high - low, status)
                continue
            place = extent.address
            try:
                for place, data in self.content(extent):
                    first, last = max(low, place), min(high, place + len(data))
                    if first < last:
                        part = data[first - place : last - place]
                        yield Piece(first, last - first, Status.MAPPED, part)
            except StreamError:
                yield from self._one_by_one(max(low, place), high)

    def _one_by_one(self, address: int, end: int) -> Iterator[Piece]:
        # Page by page, where one of them is damaged.
        while address < end:
            size = min(end, (address | self._inside) + 1) - address
            try:
                yield Piece(address, size, Status.MAPPED, self._part(address, size))
            except StreamError:
                yield Piece(address, size, Status.DAMAGED)
            address += size

    # Being an address space.

    def locate(self, address: int) -> int:
        """The L1-physical address: the same."""
        return address

    def resolve(self, address: int, access: str, steps: list[Step]) -> Status:  # noqa: ARG002
        """Whether a page is there, as the last part of a walk."""
        return self.state(address)

    def walk(self, address: int, access: str = "") -> Walk:  # noqa: ARG002
        """The translation of an L1-physical address: itself."""
        return Walk(self.state(address), address, None, self.page_size)

    def runs(self) -> Iterator[Run]:
        """The ranges of RAM."""
        for one in self.ranges:
            yield Run(one.start, one.size, one.start, ())
