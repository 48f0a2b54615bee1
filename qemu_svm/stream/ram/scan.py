"""Common RAM records of a block of input, read many at a time.

A *scanner* reads records of the most frequent kinds: pages, zero pages and XBZRLE
deltas that continue a block.  It stops before any other record and before a damaged
one; the caller examines what stopped it.  Consecutive pages of one kind become one row of
:class:`~qemu_svm.stream.ram.runs.Rows`.

There are three scanners, and tests compare them with each other::

    scan_records    one record after the other
    scan_runs       the same, but long runs by columns (ram/gallop.py)
    scan_compiled   the same in C; missing if there was no compiler

:data:`scan` is the fastest available one.  Their parameters:

data, at
    A block of input, and the position of a record in it.
base
    The offset in the stream of the first byte of ``data``.
pages
    Page size and ``top``: a word above ``top - page_size`` is outside the RAM block.
rows
    Filled from the beginning, at most to the end.

If a whole block of input is common records and the stream is in a file, the next ones
can be read directly from the file in one call: :func:`scan_file`, in C only.

The result is the position of the scanner (past the end of ``data`` if a page's content
continues there), the number of rows, and the number of pages of each kind.
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
"""The only known encoding of a delta."""

_SAME_PAGE = int(RamFlag.PAGE | RamFlag.CONTINUE)
_SAME_ZERO = int(RamFlag.ZERO | RamFlag.CONTINUE)
_SAME_DELTA = int(RamFlag.XBZRLE | RamFlag.CONTINUE)
_KIND_ZERO, _KIND_PAGE, _KIND_XBZRLE = int(PageKind.ZERO), int(PageKind.PAGE), int(PageKind.XBZRLE)

_word_at = struct.Struct(">Q").unpack_from


Found = tuple[int, int, Sequence[int]]
"""Position, number of rows, and number of pages by kind."""

Scanner = Callable[[bytes, int, int, tuple[int, int], Rows], Found]


def _scan(
    data: bytes, at: int, base: int, pages: tuple[int, int], rows: Rows, *, plainly: int
) -> Found:
    page_size, top = pages
    mask, most, last = page_size - 1, top - page_size, len(data) - 9
    page_stride = 8 + page_size
    used = 0
    sums = [0, 0, 0, 0]
    while at <= last and used < rows.room:
        word = _word_at(data, at)[0]
        flags, page, first = word & mask, word // page_size, at
        if word > most:
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
        rows.data[used], rows.count[used] = base + first + 8, count
        rows.where[used] = page << KIND_BITS | kind
        used += 1
    return at, used, sums


scan_records: Scanner = partial(_scan, plainly=_NEVER)
scan_runs: Scanner = partial(_scan, plainly=_SCALAR)


def scan_compiled(data: bytes, at: int, base: int, pages: tuple[int, int], rows: Rows) -> Found:
    """Scan in C."""
    return compiled.ram.scan(data, at, base, pages, rows.data, rows.where, rows.count)


LARGEST = 64 * KIB
"""Largest page size for the compiled functions that read files."""
FILE_ROWS = 1 << 15
"""Rows for :func:`scan_file`: enough that few calls are needed."""
_STEP = MIB


def scan_file(
    file: tuple[int, int], offset: int, pages: tuple[int, int], rows: Rows, step: int = _STEP
) -> Found:
    """Scan a stream that is in a file, up to 128 MiB in one call.

    :param file: descriptor, and offset of the stream in it.
    :param offset: of a record in the stream, as the position in the result.
    :param step: bytes to read at a time; at least two pages.
    """
    fd, start = file
    where = fd, start + offset, step, offset
    return compiled.ram.scan_file(*where, pages, rows.data, rows.where, rows.count)


scan: Scanner = scan_runs if compiled.ram is None else scan_compiled
