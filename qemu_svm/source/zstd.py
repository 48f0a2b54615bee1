"""zstd input split at its blocks, so that the output of each piece is bounded.

The decompressor returns all output of its input at once, and 4 bytes of input may
expand to 128 KiB.  A block never has more output than 128 KiB and gives its length,
so the input is split after each block.

A frame is a magic number, a descriptor, the fields that it announces, blocks, and
perhaps a checksum; a skippable frame is a magic number, a length, and that many bytes.

Source: RFC 8878, section 3.1.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zstandard

_MAGIC = 0xFD2FB528
_SKIPPABLE = 0x184D2A50  # and the next 15 numbers
_RLE = 1
_NO_END = 1 << 62
_LEAST, _MOST = 1 << 10, 1 << 31
"""Windows that the library supports (bytes)."""


def decompressor(window: int) -> zstandard.ZstdDecompressor:
    """Return a decompressor that refuses frames with a larger window than ``window`` bytes."""
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=min(max(window, _LEAST), _MOST))


class Pieces:
    """Splits compressed bytes after every block."""

    def __init__(self) -> None:
        self._parts = _parts()
        self._step = next(self._parts)
        self._head = bytearray()

    def cut(self, data: bytes) -> Iterator[bytes]:
        """Yield ``data``, the next bytes of the input, in pieces with at most one whole block."""
        start = at = 0
        while at < len(data):
            look, size = self._step
            part = data[at : at + size]
            at += len(part)
            if look:
                self._head += part
            if len(part) < size:
                self._step = look, size - len(part)
                break
            self._step = self._parts.send(bytes(self._head))
            self._head.clear()
            if not look:
                yield data[start:at]
                start = at
        if start < len(data):
            yield data[start:]


def _parts() -> Generator[tuple[bool, int], bytes, None]:
    # Yields the parts of all frames: whether its bytes are needed (they are sent
    # back then), and its length.
    while True:
        magic = int.from_bytes((yield True, 4), "little")
        if magic & ~0xF == _SKIPPABLE:
            yield False, int.from_bytes((yield True, 4), "little")
            continue
        if magic != _MAGIC:
            yield False, _NO_END  # the decompressor reports it
        flags = (yield True, 1)[0]
        single = flags >> 5 & 1
        rest = (not single) + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
        if rest:
            yield True, rest
        last = 0
        while not last:
            head = int.from_bytes((yield True, 3), "little")
            last, size = head & 1, head >> 3
            if size:
                yield False, 1 if head >> 1 & 3 == _RLE else size
        if flags & 4:
            yield True, 4
