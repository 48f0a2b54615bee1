"""Decompressors with bounded memory, all as ``read(n)`` functions.

gzip, xz and bzip2 come from the standard library, which returns at most what
it is asked for.  zstandard's reader does not tell a cut frame
from a finished one, so zstd goes through its decompressor object in steps so
small that even the densest input (128 KiB out of 4 bytes) stays in bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Protocol, cast

from qemu_svm.errors import SourceError
from qemu_svm.limits import KIB, MIB

MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"BZh", "bzip2"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x89LZO\x00\r\n\x1a\n", "lzop"),
)
"""lzop data is known here, and read by :mod:`qemu_svm.source.lzop`."""

_ZSTD_STEP = KIB
_STEP = 64 * KIB
_XZ_MEMORY = 128 * MIB  # xz -9 needs 65 MiB

Read = Callable[[int], bytes]


class Raw(Protocol):
    """What is decompressed: a file or a feed."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most ``size`` bytes, none at the end."""
        ...


def sniff(head: bytes) -> str:
    """Name the compression that ``head`` starts with, or ``none``."""
    for magic, name in MAGICS:
        if head.startswith(magic):
            return name
    return "none"


def reader(raw: Raw, compression: str, path: str) -> Read:
    """Return a ``read(n)`` that decompresses ``raw``.

    The function raises :class:`SourceError` where the input is cut or broken.
    """
    read = _open(raw, compression)
    failures = _failures(compression)

    def guarded(size: int) -> bytes:
        try:
            return read(size)
        except EOFError as error:
            raise SourceError(f"the {compression} data of '{path}' is cut short") from error
        except failures as error:
            raise SourceError(f"the {compression} data of '{path}' is damaged: {error}") from error

    return guarded


def _open(raw: Raw, compression: str) -> Read:
    if compression == "gzip":
        return _gzip(raw)
    if compression == "zstd":
        return _zstd(raw)
    if compression == "xz":
        import lzma

        return _members(raw, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY))
    import bz2

    return _members(raw, bz2.BZ2Decompressor)


def _gzip(raw: Raw) -> Read:
    import gzip

    return gzip.GzipFile(fileobj=cast("IO[bytes]", raw)).read1


class _Member(Protocol):
    # What bz2 and lzma decompressors have in common.
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _members(raw: Raw, new: Callable[[], _Member]) -> Read:
    # The library's file objects would do, but LZMAFile takes no memory limit
    # and an xz header may ask for a dictionary of 4 GiB.
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


def _zstd(raw: Raw) -> Read:
    import zstandard

    decompressor = zstandard.ZstdDecompressor()
    frame = decompressor.decompressobj()
    started = False
    pending = b""

    def read(size: int) -> bytes:
        nonlocal frame, started, pending
        out: list[bytes] = []
        have = 0
        while have < size:
            data = pending or raw.read(_ZSTD_STEP)
            pending = b""
            if not data:
                if started and not have:
                    raise EOFError
                break
            started = True
            piece = frame.decompress(data)
            out.append(piece)
            have += len(piece)
            if frame.eof:
                pending = frame.unused_data
                frame = decompressor.decompressobj()
                started = False
        return b"".join(out)

    return read
