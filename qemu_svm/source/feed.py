"""Sequential bytes with look-ahead, from which compressions and containers are unwrapped."""

from __future__ import annotations

from collections.abc import Callable

from qemu_svm.errors import SourceError
from qemu_svm.limits import KIB
from qemu_svm.source.base import Source

_STEP = 64 * KIB

Read = Callable[[int], bytes]


class Feed:
    """Sequential reads with look-ahead.

    :param read: returns at most about n bytes, ``b""`` at the end; if it raises
        :class:`SourceError`, the bytes before the error are returned first.
    :param source: the same bytes with random access, if available.
    :param limit: most bytes that ``read`` may return in total.
    """

    def __init__(self, read: Read, path: str, *, limit: int, source: Source | None = None) -> None:
        self.path = path
        self.source = source
        self.position = 0
        self._read = read
        self._limit = limit
        self._buffer = b""
        self._at = 0
        self._failure: SourceError | None = None

    def _more(self, size: int) -> bytes:
        if self._failure is not None:
            raise self._failure
        data = self._read(size)
        self._limit -= len(data)
        if self._limit < 0:
            raise SourceError(
                f"too much data decompressed from '{self.path}'",
                hint="raise it with --limit spool_bytes=SIZE, or decompress to a file first",
            )
        return data

    def peek(self, size: int) -> bytes:
        """Return up to ``size`` bytes without moving; fewer at the end or before damage."""
        while len(self._buffer) - self._at < size:
            try:
                data = self._more(max(size, _STEP))
            except SourceError as error:
                self._failure = error
                break
            if not data:
                break
            self._buffer = self._buffer[self._at :] + data
            self._at = 0
        return self._buffer[self._at : self._at + size]

    def read(self, size: int = -1) -> bytes:
        """Return at most ``size`` bytes; ``b""`` at the end.

        :raises SourceError: damage, after everything before it has been returned.
        """
        if size < 0:
            size = _STEP
        if self._at >= len(self._buffer):
            self._buffer, self._at = b"", 0  # free the old one first
            self._buffer = self._more(size)
        data = self._buffer[self._at : self._at + size]
        self._at += len(data)
        self.position += len(data)
        return data

    def take(self, size: int) -> bytes:
        """Return exactly ``size`` bytes; fewer at the end or before damage."""
        data = self.peek(size)
        self._at += len(data)
        self.position += len(data)
        return data


def feed_of(source: Source, limit: int, start: int = 0) -> Feed:
    """Return a feed of the bytes of a source from ``start`` on."""
    at = start

    def read(size: int) -> bytes:
        nonlocal at
        data = source.read_at(at, size)
        at += len(data)
        return data

    feed = Feed(read, source.path, limit=limit, source=source)
    feed.position = start
    return feed
