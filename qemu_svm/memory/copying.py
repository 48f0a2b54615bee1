"""Guest memory written into a file at another offset; what is zero or missing is a hole."""

from __future__ import annotations

import os
from collections.abc import Sequence

from qemu_svm.memory.physical import ENCODED, FIRST_PLACE, Extent, Physical
from qemu_svm.stream.ram.runs import unpack

_WINDOW = 1 << 20
_MOST_PARTS = 512  # of a pwritev


def copy(physical: Physical, start: int, size: int, fd: int, place: int) -> None:
    """Write ``size`` bytes of L1-physical memory at ``place`` of a file without content there.

    :param start: a multiple of the page size, as ``size`` is.
    :raises StreamError: a page is damaged.
    :raises OSError: the file cannot be written.
    """
    for extent in physical.extents(start, start + size):
        if extent.word >= FIRST_PLACE or extent.word == ENCODED:
            _copy(physical, extent, fd, place + extent.address - start)


def _copy(physical: Physical, extent: Extent, fd: int, place: int) -> None:
    size = physical.page_size
    if extent.word == ENCODED or extent.stride == size:
        for address, data in physical.content(extent):
            _all(fd, [data], place + address - extent.address)
        return
    # Pages with a header before each: read with the headers, written without.
    pages, stride = extent.size // size, extent.stride
    source = unpack(extent.word)
    batch = min(_WINDOW // stride, _MOST_PARTS)
    for first in range(0, pages, batch):
        many = min(batch, pages - first)
        block = memoryview(
            physical.ram.read_at(source.plus(first * stride), (many - 1) * stride + size)
        )
        parts = [block[one : one + size] for one in range(0, len(block), stride)]
        _all(fd, parts, place + first * size)


def _all(fd: int, parts: Sequence[memoryview | bytes], place: int) -> None:
    wanted = sum(map(len, parts))
    done = os.pwritev(fd, parts, place)
    if done < wanted:
        rest = b"".join(parts)[done:]
        place += done
        while rest:
            done = os.pwrite(fd, rest, place)
            rest, place = rest[done:], place + done
