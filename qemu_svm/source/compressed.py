"""Decompressors with bounded memory, all as ``read(n)`` functions.

gzip, xz and bzip2 come from the standard library, which returns at most the
requested number of bytes.  The reader of zstandard does not distinguish a cut frame
from a complete one, so its decompressor object is used, block by block
(:mod:`qemu_svm.source.zstd`).  Memory is bounded by the *window*, the output that
the input may refer back to: xz and zstd declare its size, and windows above a limit
are refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import IO, Protocol, cast

from qemu_svm.errors import SourceError
from qemu_svm.limits import DEFAULT, KIB, MIB
from qemu_svm.source.feed import Feed

MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x89LZO\x00\r\n\x1a\n", "lzop"),
)
"""Magic numbers and names; lzop data is read by :mod:`qemu_svm.source.lzop`."""

WINDOWED = frozenset({"xz", "zstd"})
"""Compressions whose input declares the size of its window."""

_STEP = 64 * KIB
_SNIFFED = 16
_MOST_SKIPPED = MIB
_XZ_MORE = 4 * MIB  # memory of xz in addition to its window

Read = Callable[[int], bytes]


class Raw(Protocol):
    """Compressed input: a file or a feed."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most ``size`` bytes; none at the end."""
        ...


def sniff(head: bytes) -> str:
    """Return the name of the compression that ``head`` starts with, or ``none``."""
    for magic, name in MAGICS:
        if head.startswith(magic):
            return name
    return "none"


def sniff_feed(feed: Feed) -> str:
    """Return the same for a feed; frames that zstd and lz4 skip may come first.

    Source: RFC 8878, section 3.1.2.
    """
    head = feed.peek(_SNIFFED)
    if not _skippable(head, 0):
        return sniff(head)
    head = feed.peek(_MOST_SKIPPED + _SNIFFED)
    at = 0
    while _skippable(head, at):
        at += 8 + int.from_bytes(head[at + 4 : at + 8], "little")
    # Behind that many bytes it is zstd: its own tool writes such frames, that of lz4 does not.
    return "zstd" if at > _MOST_SKIPPED or sniff(head[at : at + _SNIFFED]) == "zstd" else "none"


def _skippable(data: bytes, at: int) -> bool:
    return len(data) >= at + 8 and data[at + 1 : at + 4] == b"\x2a\x4d\x18" and data[at] >> 4 == 5


def reader(raw: Raw, compression: str, path: str, window: int = DEFAULT.window_bytes) -> Read:
    """Return a ``read(n)`` that decompresses ``raw``.

    :param window: largest window that is accepted (bytes).

    The function raises :class:`SourceError` where the input is truncated or damaged.
    """
    read = _open(raw, compression, window)
    failures = _failures(compression)

    def guarded(size: int) -> bytes:
        try:
            return read(size)
        except EOFError as error:
            raise SourceError(f"the {compression} data of '{path}' is truncated") from error
        except failures as error:
            if _too_far(error):
                raise SourceError(
                    f"the {compression} data of '{path}' needs a window of more than "
                    f"{window >> 20} MiB",
                    hint="raise it with --limit window_bytes=SIZE, or decompress to a file first",
                ) from error
            raise SourceError(f"the {compression} data of '{path}' is damaged: {error}") from error

    return guarded


def _too_far(error: Exception) -> bool:
    # Neither library has a separate exception for a window that is too large.
    return any(words in str(error) for words in ("too much memory", "Memory usage limit"))


def _open(raw: Raw, compression: str, window: int) -> Read:
    if compression == "gzip":
        return _gzip(raw)
    if compression == "zstd":
        return _zstd(raw, window)
    if compression == "xz":
        import lzma

        return _members(raw, lambda: lzma.LZMADecompressor(memlimit=window + _XZ_MORE))
    import bz2

    return _members(raw, bz2.BZ2Decompressor)


def _gzip(raw: Raw) -> Read:
    import gzip

    return gzip.GzipFile(fileobj=cast("IO[bytes]", raw)).read1


class _Member(Protocol):
    # The common interface of bz2 and lzma decompressors.
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _members(raw: Raw, new: Callable[[], _Member]) -> Read:
    # Not the library's file objects: LZMAFile has no memory limit, and an xz
    # header may demand a dictionary of 4 GiB.
    member = new()
    started = False

    def read(size: int) -> bytes:
        nonlocal member, started
        while True:
            data = b""
            if member.eof:
                data = member.unused_data or raw.read(_STEP)
                if not data.strip(b"\0"):  # the end, or xz stream padding
                    return b""
                member = new()
            elif member.needs_input:
                data = raw.read(_STEP)
                if not data:
                    if started:
                        raise EOFError
                    return b""
            started = True
            out = member.decompress(data, size)
            if out:
                return out

    return read


def _failures(compression: str) -> tuple[type[Exception], ...]:
    if compression == "gzip":
        import zlib

        return (OSError, zlib.error)
    if compression == "xz":
        import lzma

        return (OSError, lzma.LZMAError)
    if compression == "zstd":
        import zstandard

        return (OSError, zstandard.ZstdError)
    return (OSError, ValueError)


def _zstd(raw: Raw, window: int) -> Read:
    from qemu_svm.source.zstd import Pieces, decompressor

    frames, pieces = decompressor(window), Pieces()
    frame = frames.decompressobj()
    started = False
    ready: deque[bytes] = deque()

    def read(size: int) -> bytes:
        nonlocal frame, started
        out: list[bytes] = []
        have = 0
        while have < size:
            if not ready:
                ready.extend(pieces.cut(raw.read(_STEP)))
            if not ready:
                if started and not have:
                    raise EOFError
                break
            started = True
            piece = frame.decompress(ready.popleft())
            out.append(piece)
            have += len(piece)
            if frame.eof:
                if frame.unused_data:
                    ready.appendleft(frame.unused_data)
                frame = frames.decompressobj()
                started = False
        return b"".join(out)

    return read
