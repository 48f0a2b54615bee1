"""mapped-ram: every page at a fixed place in the file.

A block's entry in the block list is followed by 28 bytes (version, page size,
``bitmap_offset``, ``pages_offset``; big-endian), a bitmap and, at ``pages_offset``,
space for the whole block.  Both offsets count from the start of the *file*, even if
the stream starts later in it.  A page whose bit is clear is zero, even if its place
contains old bytes.  The bitmap has the host's byte order, here little-endian, and
whole 64-bit words.  A block that is not saved (x-ignore-shared) has both offsets 0 and
no space.

Source: QEMU ``migration/ram.c`` (``mapped_ram_setup_ramblock``,
``parse_ramblock_mapped_ram``, ``struct MappedRamHeader``), 10.2.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from qemu_svm.errors import Malformed, Unsupported
from qemu_svm.source.base import Source
from qemu_svm.stream.ram.final import Final, Tally
from qemu_svm.stream.ram.page_size import is_page_size
from qemu_svm.stream.ram.runs import INPUT_SHIFT, KIND_BITS, KINDS, Columns, PageKind
from qemu_svm.stream.reader import Reader

_VERSION = 1
_STEP = 1 << 11  # bytes of bitmap at a time: 16 Ki pages
_SAME = re.compile(b"0+|1+")


@dataclass(frozen=True, slots=True)
class MappedBlock:
    """Where a block's bitmap and pages are, as offsets in the stream."""

    bitmap: int
    pages: int
    count: int
    page_size: int

    @property
    def bitmap_size(self) -> int:
        """Bytes of the bitmap."""
        return (self.count + 63) // 64 * 8


def read_header(
    reader: Reader, used_length: int, base: int | None, page_size: int | None
) -> tuple[MappedBlock | None, int | None]:
    """Read a block's header and move past the block's pages.

    :param base: offset of the stream's first byte in its file; if it is None, the
        bitmap is assumed to follow the header immediately, as QEMU writes it.
    :param page_size: of the guest; None if the header is to tell it.
    :returns: the block, None if it is not saved; and the base.
    :raises Malformed: another page size, or offsets that point backwards or into the header.
    """
    start = reader.offset
    version = reader.u32("a mapped-ram header")
    if version != _VERSION:
        raise Unsupported(
            "unknown version of a mapped-ram header",
            offset=start,
            section="ram",
            expected=f"{_VERSION}",
            found=f"{version}",
        )
    size = reader.u64("a mapped-ram header")
    bitmap, pages = (reader.u64("a mapped-ram header") for _ in range(2))
    if not bitmap and not pages:
        return None, base
    if base is None:
        base = max(0, bitmap - reader.offset)
    if size != page_size and (page_size is not None or not is_page_size(size)):
        raise Malformed(
            "page size in a mapped-ram header is not that of the guest",
            offset=start + 4,
            section="ram",
            expected=f"{page_size or 'a power of two'}",
            found=f"{size}",
        )
    count = (used_length + size - 1) // size
    block = MappedBlock(bitmap - base, pages - base, count, size)
    if block.bitmap < reader.offset or block.pages < block.bitmap + block.bitmap_size:
        raise Malformed(
            "overlapping parts of a mapped-ram block",
            offset=start + 12,
            section="ram",
            expected=f"the bitmap at {reader.offset + base:#x} or later, then the pages",
            found=f"{bitmap:#x} and {pages:#x}",
        )
    if block.pages + used_length >> INPUT_SHIFT:
        raise Malformed(
            "mapped-ram block ends past the largest file offset",
            offset=start + 20,
            section="ram",
            expected=f"less than {1 << INPUT_SHIFT:#x}",
            found=f"{pages + used_length:#x}",
        )
    reader.offset = block.pages + used_length
    return block, base


class MappedPages(Final):
    """The pages of a block as its bitmap says, which is read whenever it is needed.

    :param number: of the input; see :class:`~qemu_svm.stream.ram.runs.Place`.
    :param stored: number of pages that are in the file.
    :param runs: number of runs of pages that are all in the file, or all not.
    :raises Truncated: the input ends inside the bitmap.
    """

    def __init__(self, source: Source, number: int, block: MappedBlock) -> None:
        self.block = block
        self._source = source
        self._data = number << INPUT_SHIFT | block.pages
        self.stored, self.runs, last = 0, 0, -1
        for _, count, bits in self._pieces(0, block.count):
            self.stored += bits.bit_count()
            # A run begins where a bit differs from the one before it.
            begins = (bits ^ bits << 1) & (1 << count) - 1 & ~1
            self.runs += begins.bit_count() + (bits & 1 != last)
            last = bits >> count - 1

    def _pieces(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        # ``(page, count, bits)``; the lowest bit is the first page's.
        block = self.block
        end = min(end, block.count)
        while first < end:
            at = first // 8
            size = min(_STEP, block.bitmap_size - at)
            data = self._source.read_at(block.bitmap + at, size)
            if len(data) < size:
                reader = Reader(self._source, block.bitmap + at)
                raise reader.truncated("a mapped-ram bitmap", size, len(data))
            bits = int.from_bytes(data, "little")
            skip = first - at * 8
            count = min(size * 8 - skip, end - first)
            yield first, count, bits >> skip & (1 << count) - 1
            first += count

    def rows(self, first: int, end: int) -> Iterator[Columns]:
        """Yield the runs of the pages from ``first`` to before ``end``, some at a time."""
        size, start = self.block.page_size, self._data
        kinds = (int(PageKind.ABSENT), int(PageKind.PLACED))
        for page, count, bits in self._pieces(first, end):
            text = format(bits, f"0{count}b").encode()[::-1]
            bounds = [0, *(run.end() for run in _SAME.finditer(text))]
            stored = [text[at] & 1 for at in bounds[:-1]]
            runs = list(zip(bounds, stored, strict=False))
            yield (
                array("Q", [page + at << KIND_BITS | kinds[bit] for at, bit in runs]),
                array("I", [after - at for at, after in pairwise(bounds)]),
                array("Q", [start + (page + at) * size if bit else 0 for at, bit in runs]),
            )

    def tally(self, first: int, end: int) -> Tally:
        """Return the numbers of the pages from ``first`` to before ``end``."""
        kinds = [0] * KINDS
        for _, count, bits in self._pieces(first, end):
            stored = bits.bit_count()
            kinds[PageKind.PLACED] += stored
            kinds[PageKind.ABSENT] += count - stored
        return Tally(kinds, 0, int(any(kinds)))
