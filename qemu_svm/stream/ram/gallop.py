"""The length of a run of records, measured many records at a time.

In a run, records of one kind are at a fixed distance and their words increase by one
page.  So each of the word's eight bytes forms a column of the input, which a strided
slice extracts at once, and the expected column is known: the flags and the high bytes
are constant, the middle ones count.  In a column that differs, binary search finds the
first difference.  Strided slices of ``bytes`` do this at the speed of memory and,
unlike numpy, do not take a tenth of a second to import.

The first comparison is of few records, and each complete success makes the next four
times as long, so short runs cost little.
"""

from __future__ import annotations

from functools import cache

_FIRST = 64
_WORD = 8


@cache
def _columns(page_size: int) -> tuple[int, bytes, bytes]:
    # The number of pages in 16 MiB, and bytes 1 and 2 of their addresses.
    pages = max(1, (1 << 24) // page_size)
    one = bytes(page * page_size >> 8 & 0xFF for page in range(pages))
    two = bytes(page * page_size >> 16 & 0xFF for page in range(pages))
    return pages, one, two


@cache
def _constant(byte: int, size: int) -> bytes:
    return bytes((byte,)) * size


def gallop(data: bytes, pos: int, word: int, stride: int, page_size: int) -> int:
    """Return the number of records at ``pos`` that form a run starting with ``word``.

    :param word: the first record's word; each further one is one page higher.  No
        flag is above 0x80.
    :param stride: distance of the records; 9 for zero pages, whose last byte must be 0.
    :returns: 0 if the first record differs.  Records are counted if at least their
        first 9 bytes are in ``data``.
    """
    pages, one, two = _columns(page_size)
    total = 0
    look = _FIRST
    while True:
        room = (len(data) - pos - _WORD - 1) // stride + 1
        first = (word & 0xFF_FFFF) // page_size
        look = min(look, room, pages - first)
        if look <= 0:
            return total
        count = _matching(data, (pos, stride), word, look, (one[first : first + look], two[first:]))
        total += count
        if count < look:
            return total
        pos += count * stride
        word += count * page_size
        look *= 4


def _matching(
    data: bytes, place: tuple[int, int], word: int, count: int, middle: tuple[bytes, bytes]
) -> int:
    pos, stride = place
    one, two = middle
    for column in (7, 6, 5, 4, 3, 2, 1, 0, 8):
        if column == 8 and stride != _WORD + 1:
            break
        start = pos + column
        have = data[start : start + (count - 1) * stride + 1 : stride]
        if column == 6:
            want = one[:count]
        elif column == 5:
            want = two[:count]
        else:
            byte = 0 if column == 8 else word >> 8 * (7 - column) & 0xFF
            want = _constant(byte, 1 << 16)[:count] if count <= 1 << 16 else bytes((byte,)) * count
        if have != want:
            count = _common(have, want)
            if not count:
                return 0
    return count


def _common(have: bytes, want: bytes) -> int:
    # Length of the common prefix of two different strings.
    low, high = 0, len(have)
    while high - low > 1:
        middle = (low + high) // 2
        if have[low:middle] == want[low:middle]:
            low = middle
        else:
            high = middle
    return low
