"""A cursor over a source.

Every short read raises :class:`~qemu_svm.errors.Truncated`, with the offset at which
the input ends and the name of the structure that was being read.
"""

from __future__ import annotations

import io
from typing import Any

import construct
from construct import Construct, ConstructError

from qemu_svm.errors import LimitExceeded, Malformed, Truncated
from qemu_svm.limits import KIB
from qemu_svm.source.base import BackingFile, Source

_BLOCK = 256 * KIB
_STRUCTURE = (KIB, 64 * KIB)  # bytes of a fixed structure: usually, at most


def name_text(raw: bytes) -> str:
    r"""Decode a name from the wire; what is not UTF-8 becomes an escape such as ``\xff``.

    Different names stay different: where the wire has the text ``\x``, its backslash
    becomes ``\x5c``.  Names are ASCII in practice.  Control characters are kept: whoever prints a
    name escapes them (:mod:`qemu_svm.render.escape`).
    """
    return raw.replace(b"\\x", b"\\x5cx").decode("utf-8", "backslashreplace")


class Reader:
    """Sequential and positioned reads with one block of look-ahead."""

    def __init__(self, source: Source, offset: int = 0) -> None:
        self.offset = offset
        self.source = source
        self._block = b""
        self._block_at = 0

    def window(self, least: int) -> tuple[bytes, int]:
        """Return a block of input and the position of :attr:`offset` in it.

        At least ``least`` bytes follow that position, fewer only at the end.
        For loops in which a call for each value is too slow.
        """
        start = self.offset - self._block_at
        if not 0 <= start <= len(self._block) - least:
            self._block = self.source.read_at(self.offset, max(least, _BLOCK))
            self._block_at = self.offset
            start = 0
        return self._block, start

    def backing_file(self) -> BackingFile | None:
        """Return the file that the input can be read from directly, if there is one."""
        return self.source.backing_file()

    def peek(self, size: int) -> bytes:
        """Return up to ``size`` bytes without moving."""
        block, start = self.window(size)
        return block[start : start + size]

    def take(self, size: int, what: str) -> bytes:
        """Return exactly ``size`` bytes and move past them.

        :param what: name of the structure, for errors.
        :raises Truncated: there are fewer.
        """
        data = self.peek(size)
        if len(data) < size:
            raise self.truncated(what, size, len(data))
        self.offset += size
        return data

    def skip(self, size: int, what: str) -> None:
        """Move past ``size`` bytes without reading them.

        :raises Truncated: the last of them does not exist.
        """
        start = self.offset
        if size:
            self.offset += size - 1
            there = self.peek(1)
            self.offset = start
            if not there:
                raise self.truncated(what, size, max(0, self.source.size() - start))
        self.offset += size

    def truncated(
        self, what: str, size: int, have: int, *, section: str | None = None
    ) -> Truncated:
        """Return the error for a ``what`` of ``size`` bytes at the current offset."""
        # After a jump the offset may be past the end.
        end = self.offset + have if have else min(self.offset, self.source.size())
        return Truncated(
            f"the input ends inside {what} at {self.offset:#x}",
            offset=end,
            section=section,
            expected=f"{size} bytes",
            found=f"{have}",
        )

    def at_end(self) -> bool:
        """Whether the input ends here."""
        return not self.peek(1)

    def u8(self, what: str) -> int:
        """Read one byte."""
        return self.take(1, what)[0]

    def u32(self, what: str) -> int:
        """Read a big-endian 32-bit number."""
        return int.from_bytes(self.take(4, what), "big")

    def u64(self, what: str) -> int:
        """Read a big-endian 64-bit number."""
        return int.from_bytes(self.take(8, what), "big")

    def structure(self, layout: Construct[Any, Any], what: str) -> Any:
        """Parse ``layout`` here and move past it.

        :raises Truncated: the input ends inside it.
        :raises Malformed: the bytes contradict it.
        :raises LimitExceeded: it has more than 64 KiB.
        """
        for most in _STRUCTURE:
            data = self.peek(most)
            stream = io.BytesIO(data)
            try:
                value = layout.parse_stream(stream)
            except construct.StreamError as error:
                if len(data) == most:
                    continue
                cut = self.truncated(what, len(data) + 1, len(data))
                cut.field, cut.expected = _field(error), "more bytes"
                raise cut from error
            except ConstructError as error:
                raise Malformed(
                    f"{what} is invalid",
                    offset=self.offset,
                    field=_field(error),
                    found=data[:16].hex(" "),
                ) from error
            self.offset += stream.tell()
            stream.close()  # what construct returns is part of a cycle, and refers to it
            return value
        raise LimitExceeded(
            f"{what} is implausibly large",
            offset=self.offset,
            expected=f"at most {_STRUCTURE[-1]} bytes",
        )


def _field(error: ConstructError) -> str | None:
    # construct reports "(parsing) -> name -> subname".
    path = getattr(error, "path", None)
    return path.split("-> ", 1)[1].replace(" -> ", ".") if path and "-> " in path else None
