"""Reads a log of any size line by line.

The middle of a line that is too long is left out: its beginning has the call, its
end the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

_STEP = 256 * 1024
_TAIL = 512


class Bytes(Protocol):
    """Random access to the bytes of a log."""

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``; fewer only at the end."""
        ...


def lines(log: Bytes, limit: int) -> Iterator[tuple[int, str]]:
    """Yield ``(number, text)`` of every line, numbered from 1.

    :param limit: bytes of a line that are kept.
    """
    offset = 0
    number = 0
    head = b""
    while chunk := log.read_at(offset, _STEP):
        offset += len(chunk)
        *whole, last = chunk.split(b"\n")
        for piece in whole:
            number += 1
            yield number, _text(head + piece, limit)
            head = b""
        head = (head + last)[:limit]
    if head:
        yield number + 1, _text(head, limit)


def _text(line: bytes, limit: int) -> str:
    if len(line) > limit:
        line = line[:limit] + line[max(limit, len(line) - _TAIL) :]
    return line.decode("utf-8", "backslashreplace").rstrip("\r")
