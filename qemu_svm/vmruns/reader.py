"""Reads a log record by record.

Memory is bounded by the number of pages that a log may refer back to.  Damage ends
reading with an error that has its offset, after everything before it was returned.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qemu_svm.errors import LimitExceeded, Malformed, StreamError, Truncated, Unsupported
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.source.base import Source
from qemu_svm.stream.reader import Reader
from qemu_svm.stream.recognise import LOG_HINT, looks_like_text
from qemu_svm.vmruns import structs
from qemu_svm.vmruns.structs import Flag, RecordKind

_HEAD = structs.RECORD.sizeof()
_PAGE = structs.PAGE.sizeof()


def _unpacker(layout: Any) -> struct.Struct:
    # The same declaration for Python's struct, which is about twenty times as fast.
    return struct.Struct("<" + "".join(one.subcon.fmtstr[1:] for one in layout.subcons))


_RECORD, _PAGE_HEAD = _unpacker(structs.RECORD), _unpacker(structs.PAGE)
_RUN = structs.RUN.sizeof()
_CHECKSUM = structs.CHECKSUM.sizeof()
PAGE_SIZE = 0x1000
_MAX_RECORD = _HEAD + _PAGE + PAGE_SIZE + _RUN * (PAGE_SIZE // 8) + _CHECKSUM


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a log.

    :param api: version of the emulator's plugin interface.
    :param vcpus: of the emulated host.
    :param pages: how many pages the log refers back to at most.
    """

    api: int
    vcpus: int
    pages: int


@dataclass(frozen=True, slots=True)
class Event:
    """One record.

    :param offset: of the record in the log.
    :param time: nanoseconds since the emulator started.
    :param address: physical address of ``page``, or 0.
    :param entry: number of the VMRUN that an exit or a vmcb12 belongs to; 0 if none.
    :param page: the 4096 bytes of the VMCB, or None.
    """

    offset: int
    number: int
    kind: int
    flags: Flag
    vcpu: int
    time: int
    rip: int
    rax: int
    address: int = 0
    entry: int = 0
    page: bytes | None = None

    @property
    def in_guest(self) -> bool:
        """Whether it was executed below L0, by a guest."""
        return Flag.IN_GUEST in self.flags


class LogReader:
    """Reads a log once, from its beginning to its end.

    :raises Truncated: the header is not all there.
    :raises Malformed: the input is not a log of svmtrace.
    :raises Unsupported: the log is of another version.
    """

    def __init__(self, source: Source, limits: Limits = DEFAULT) -> None:
        self.path = source.path
        self._limits = limits
        self._reader = Reader(source)
        try:
            self.header = self._header()
        except StreamError as error:
            error.path = source.path
            raise
        self._pages: dict[int, bytes] = {}
        self.end: str | None = None
        """Why the log ended; None if there is no end record (the emulator was killed)."""

    def _header(self) -> Header:
        size = structs.HEADER.sizeof()
        magic = self._reader.peek(len(structs.MAGIC))
        if not structs.MAGIC.startswith(magic):
            raise Malformed(
                "not a log of svmtrace",
                offset=0,
                expected=f"'{structs.MAGIC.decode()}'",
                found=magic.hex(" "),
                hint=LOG_HINT if looks_like_text(magic) else None,
            )
        data = self._reader.take(size, "the log's header")
        head = structs.HEADER.parse(data)
        if head.version != structs.VERSION:
            raise Unsupported(
                "unsupported version of the log",
                offset=8,
                expected=str(structs.VERSION),
                found=str(head.version),
            )
        if zlib.crc32(data[:-_CHECKSUM]) != head.crc:
            raise Malformed("wrong checksum of the header", offset=size - _CHECKSUM)
        if head.size != size or head.page_size != PAGE_SIZE:
            raise Malformed("invalid sizes in the header", offset=10)
        if head.pages > self._limits.vmruns_pages:
            raise LimitExceeded(
                "the log refers back to too many pages",
                offset=16,
                expected=f"at most {self._limits.vmruns_pages}",
                found=str(head.pages),
                hint="raise the limit vmruns_pages",
            )
        return Header(head.api, head.vcpus, head.pages)

    def __iter__(self) -> Iterator[Event]:
        """Yield every record; when iterated again, those written meanwhile.

        :raises Truncated: the log ends inside a record.
        :raises Malformed: a record is damaged.
        """
        while self._reader.peek(1):
            start = self._reader.offset
            try:
                event = self._record()
            except Truncated:
                self._reader.offset = start
                raise
            if event.kind == RecordKind.END:
                self.end = structs.ENDS.get(event.rax, f"reason {event.rax}")
            yield event

    def _record(self) -> Event:
        start = self._reader.offset
        size = int.from_bytes(self._reader.peek(4), "little")
        if len(self._reader.peek(4)) == 4 and not _HEAD + _CHECKSUM <= size <= _MAX_RECORD:
            raise Malformed(
                "invalid size of a record",
                offset=start,
                expected=f"{_HEAD + _CHECKSUM} to {_MAX_RECORD} bytes",
                found=str(size),
            )
        data = self._reader.take(max(size, 4), "a record")
        if zlib.crc32(data[:-_CHECKSUM]) != int.from_bytes(data[-_CHECKSUM:], "little"):
            raise Malformed("wrong checksum of a record", offset=start)
        _, kind, number_of_flags, vcpu, number, time, rip, rax = _RECORD.unpack_from(data)
        flags = Flag(number_of_flags)
        address = entry = 0
        page = None
        if Flag.PAGE in flags:
            address, entry, page = self._page(data, start, delta=Flag.DELTA in flags)
        elif size != _HEAD + _CHECKSUM:
            raise Malformed("trailing data in a record", offset=start + _HEAD, field="size")
        return Event(start, number, kind, flags, vcpu, time, rip, rax, address, entry, page)

    def _page(self, data: bytes, start: int, *, delta: bool) -> tuple[int, int, bytes]:
        end = len(data) - _CHECKSUM
        if end < _HEAD + _PAGE:
            raise Malformed("the record is too short for a page", offset=start, field="size")
        address, entry, runs = _PAGE_HEAD.unpack_from(data, _HEAD)
        page = bytearray(self._base(address, start) if delta else bytes(PAGE_SIZE))
        at = _HEAD + _PAGE
        for _ in range(runs):
            offset = int.from_bytes(data[at : at + 2], "little")
            length = int.from_bytes(data[at + 2 : at + _RUN], "little")
            at += _RUN
            if at + length > end or offset + length > PAGE_SIZE:
                raise Malformed(
                    "changed bytes outside the record or the page", offset=start + at - _RUN
                )
            page[offset : offset + length] = data[at : at + length]
            at += length
        if at != end:
            raise Malformed("trailing data after the changed bytes of a page", offset=start + at)
        known = bytes(page)
        if address not in self._pages and len(self._pages) >= self.header.pages:
            self._pages.clear()
        self._pages[address] = known
        return address, entry, known

    def _base(self, address: int, start: int) -> bytes:
        if address not in self._pages:
            raise Malformed(
                f"changes to a page at {address:#x} that is not in the log", offset=start
            )
        return self._pages[address]
