"""XBZRLE: a page as the difference from its previous content.

The encoded page is a sequence of pairs: the number of unchanged bytes, then the number
of new bytes and these bytes themselves (not an XOR).  Both numbers are little-endian
base 128 of at most two bytes.  Only the first number of unchanged bytes may be 0; the
bytes after the last pair are unchanged.

Source: QEMU ``migration/xbzrle.c`` (``xbzrle_decode_buffer``) and
``util/cutils.c`` (``uleb128_decode_small``), 7.2 and 10.2.
"""

from __future__ import annotations

from qemu_svm.errors import Malformed


def apply_delta(page: bytearray, delta: bytes, offset: int) -> None:
    """Apply a delta to ``page`` in place.

    :param offset: of ``delta`` in the stream, for errors.
    :raises Malformed: the pairs are cut, or reach past the end of the page.
    """
    size, end = len(page), len(delta)
    place = at = 0
    while at < end:
        start = at
        same, at = _number(delta, at, offset)
        place += same
        count, at = _number(delta, at, offset)
        bad = place + count > size or at + count > end or not count or (start and not same)
        if bad:
            raise Malformed(
                "XBZRLE delta outside the page",
                offset=offset + start,
                section="ram",
                expected=f"new bytes within {size} bytes of page and {end} of data",
                found=f"{count} at {place:#x}, {end - at} left",
            )
        page[place : place + count] = delta[at : at + count]
        place += count
        at += count


def _number(delta: bytes, at: int, offset: int) -> tuple[int, int]:
    # One number, and the position after it.
    head = delta[at : at + 2]
    if head and head[0] < 0x80:
        return head[0], at + 1
    if len(head) == 2 and head[1] < 0x80:
        return head[0] & 0x7F | head[1] << 7, at + 2
    raise Malformed(
        "unterminated number in an XBZRLE page",
        offset=offset + at,
        section="ram",
        expected="at most two bytes, the last below 0x80",
        found=head.hex(" ") or "nothing",
    )
