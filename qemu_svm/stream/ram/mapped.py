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
from collections.abc import Iterator
from dataclasses import dataclass

from qemu_svm.errors import Malformed, Unsupported
from qemu_svm.stream.ram.runs import INPUT_SHIFT
from qemu_svm.stream.reader import Reader

_VERSION = 1
_STEP = 1 << 13  # bytes of bitmap at a time: 64 Ki pages
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
    reader: Reader, used_length: int, base: int | None
) -> tuple[MappedBlock | None, int | None]:
    """Read a block's header and move past the block's pages.

    :param base: offset of the stream's first byte in its file; if it is None, the
        bitmap is assumed to follow the header immediately, as QEMU writes it.
    :returns: the block, None if it is not saved; and the base.
    :raises Malformed: offsets that point backwards or into the header.
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
    page_size = reader.u64("a mapped-ram header")
    bitmap, pages = (reader.u64("a mapped-ram header") for _ in range(2))
    if not bitmap and not pages:
        return None, base
    if base is None:
        base = max(0, bitmap - reader.offset)
    if page_size < 1 << 10 or page_size > 1 << 30 or page_size & (page_size - 1):
        raise Malformed(
            "invalid page size in a mapped-ram header",
            offset=start + 4,
            section="ram",
            found=f"{page_size:#x}",
        )
    count = (used_length + page_size - 1) // page_size
    block = MappedBlock(bitmap - base, pages - base, count, page_size)
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


def page_runs(reader: Reader, block: MappedBlock) -> Iterator[tuple[bool, int, int]]:
    """Read a bitmap as runs ``(stored, first page, count)``; the reader's offset changes."""
    page = 0
    while page < block.count:
        reader.offset = block.bitmap + page // 8
        size = min(_STEP, block.bitmap_size - page // 8)
        bits = int.from_bytes(reader.take(size, "a mapped-ram bitmap"), "little")
        text = format(bits, f"0{size * 8}b").encode()[::-1][: block.count - page]
        for run in _SAME.finditer(text):
            yield text[run.start()] == ord("1"), page + run.start(), run.end() - run.start()
        page += size * 8
