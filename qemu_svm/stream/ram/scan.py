"""Common RAM records of a block of input, read many at a time.

A *scanner* reads records of the kinds that nearly all of a stream consists of:
pages, zero pages and XBZRLE deltas that continue a block.  It stops in front of
anything else, also of records that are damaged, and before a page that comes
earlier in its block than the one before; the caller looks at what stopped it.
Pages of one kind that follow one another become one row of :class:`~.ram_runs.Rows`.

There are three scanners, and tests hold them against each other::

    scan_records    one record after the other, plainly
    scan_runs       the same, but long runs by columns (:mod:`ram_gallop`)
    scan_compiled   the same in C; it may be missing where there is no compiler

:data:`scan` is the quickest that is there.  What they take:

data, at
    A block of input, and where in it a record starts.
base
    The offset in the stream of ``data``'s first byte.
pages
    Page size and ``top``: a word above ``top - page_size`` is outside the block.
rows
    Filled from its beginning, at most up to its end.

Where a block of input is full of common records and the stream lies in a file, more
of them can be read from there without coming back for each block: :func:`scan_file`,
which is compiled only.

The result says where the scanner stopped (behind ``data`` if a page's content
goes on there), how many rows there are, and the pages of each kind.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import partial

from qemu_svm.limits import KIB, MIB
from qemu_svm.stream.constants import RamFlag
from qemu_svm.stream.ram import compiled
from qemu_svm.stream.ram.gallop import gallop
from qemu_svm.stream.ram.runs import KIND_BITS, PageKind, Rows

_SCALAR = 16  # records of a run that are read one by one before galloping
_NEVER = 1 << 62
XBZRLE_HEADER = 1
"""The only way in which a delta can be encoded."""

_SAME_PAGE = int(RamFlag.PAGE | RamFlag.CONTINUE)
_SAME_ZERO = int(RamFlag.ZERO | RamFlag.CONTINUE)
_SAME_DELTA = int(RamFlag.XBZRLE | RamFlag.CONTINUE)
_KIND_ZERO, _KIND_PAGE, _KIND_XBZRLE = int(PageKind.ZERO), int(PageKind.PAGE), int(PageKind.XBZRLE)

_word_at = struct.Struct(">Q").unpack_from


Found = tuple[int, int, Sequence[int]]
"""Position, number of rows, and by :class:`~.PageKind` the number of pages."""

Scanner = Callable[[bytes, int, int, tuple[int, int], Rows], Found]


def _scan(
    data: bytes, at: int, base: int, pages: tuple[int, int], rows: Rows, *, plainly: int
) -> Found:
    page_size, top = pages
    mask, most, last = page_size - 1, top - page_size, len(data) - 9
    page_stride = 8 + page_size
    used = following = 0
    sums = [0, 0, 0, 0]
    while at <= last and used < rows.room:
        word = _word_at(data, at)[0]
        flags, page, first = word & mask, word // page_size, at
        if word > most or page < following:
            break
        if flags == _SAME_PAGE:
            kind, stride = _KIND_PAGE, page_stride
        elif flags == _SAME_ZERO and not data[at + 8]:
            kind, stride = _KIND_ZERO, 9
        elif flags == _SAME_DELTA and data[at + 8] == XBZRLE_HEADER:
            size = int.from_bytes(data[at + 9 : at + 11], "big")
            if at + 11 + size > len(data) or size > page_size:
                break
            kind, stride = _KIND_XBZRLE, 11 + size
        else:
            break
        at += stride
        count = 1
        if kind != _KIND_XBZRLE:
            expected = word + page_size
            limit = min(last, at + plainly * stride)
            while (
                at <= limit
                and _word_at(data, at)[0] == expected <= most
                and (kind == _KIND_PAGE or not data[at + 8])
            ):
                expected += page_size
                at += stride
            if limit < at <= last and expected <= most:
                many = gallop(data, at, expected, stride, page_size)
                at += min(many, (most - expected) // page_size + 1) * stride
            count = (at - first) // stride
        sums[kind] += count
        following = page + count
        rows.data[used], rows.count[used] = base + first + 8, count
        rows.where[used] = page << KIND_BITS | kind
        used += 1
    return at, used, sums


scan_records: Scanner = partial(_scan, plainly=_NEVER)
scan_runs: Scanner = partial(_scan, plainly=_SCALAR)


def scan_compiled(data: bytes, at: int, base: int, pages: tuple[int, int], rows: Rows) -> Found:
    """The compiled scanner."""
    return compiled.ram.scan(data, at, base, pages, rows.data, rows.where, rows.count)


LARGEST = 64 * KIB
"""Most bytes of a page for what is compiled to read files."""
FILE_ROWS = 1 << 15
"""Room that :func:`scan_file` should have, so that it seldom has to be called."""
_STEP = MIB


def scan_file(
    file: tuple[int, int], offset: int, pages: tuple[int, int], rows: Rows, step: int = _STEP
) -> Found:
    """Common records of a stream that lies in a file, up to 128 MiB in one call.

    :param file: descriptor, and where the stream starts in it.
    :param offset: of a record in the stream; so is the position in the result.
    :param step: how many bytes to read at a time, at least two pages.
    """
    fd, start = file
    where = fd, start + offset, step, offset
    return compiled.ram.scan_file(*where, pages, rows.data, rows.where, rows.count)


scan: Scanner = scan_runs if compiled.ram is None else scan_compiled
