"""Record by record through a stream.

The walker is at the first byte of a record, reads the whole record and moves to
the next; the table at the end of the class maps types of records to methods.
Device sections are not decoded here, only measured
(:mod:`qemu_svm.stream.sections`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import ClassVar, NoReturn

from qemu_svm.errors import LimitExceeded, Malformed, StreamError, Truncated, Unsupported
from qemu_svm.limits import Limits
from qemu_svm.source.base import Source
from qemu_svm.stream.commands import command_name, is_known
from qemu_svm.stream.constants import MAGIC, VERSION, Command, RamFlag, RecordType
from qemu_svm.stream.ram.page_size import DESCRIBED, GIVEN, is_page_size
from qemu_svm.stream.ram.records import RamState
from qemu_svm.stream.reader import Reader, name_text
from qemu_svm.stream.recognise import HEAD, LOG_HINT, looks_like_text, seen_elsewhere
from qemu_svm.stream.records import Configuration, DescriptionRecord, Kind, Record
from qemu_svm.stream.sections import NO_LAYOUTS, Footers, Layouts, SectionMeasurer
from qemu_svm.stream.structs import (
    ConfigurationHeader,
    ConfigurationSubsection,
    DescriptionHeader,
    FileHeader,
    SectionHeader,
    SectionReference,
)
from qemu_svm.stream.vmstate.description import Device

_WORD = 8  # payload of a RAM section with nothing but its end
_SMALL = 64  # largest PART that may be repeated very often (bytes)
_TURN = 5  # PARTs of different sections that may take turns, and one
_MANY = 16  # repetitions that are folded
_FOLDED = (Kind.PART, Kind.COMMAND)  # an intact stream may have any number of them
_EACH = 1024  # records of one command that are kept; unknown ones count together
_NUMBERED = (Kind.START, Kind.FULL)


class Walker:
    """State of a walk; results are in the public attributes.

    :param layouts: what is known about device sections in advance.
    :param ram: state of the ``ram`` section, if it is shared with another walk.
    :param footers: the same for footers.

    :ivar described: layouts of device sections, by the offset of the record.
    :ivar description: the VMDESCRIPTION record, once it was read.
    :ivar ended: the EOF record was read.
    """

    def __init__(
        self,
        source: Source,
        limits: Limits,
        layouts: Layouts = NO_LAYOUTS,
        *,
        ram: RamState | None = None,
        footers: Footers | None = None,
    ) -> None:
        self.source = source
        self.limits = limits
        self.layouts = layouts
        self.reader = Reader(source)
        self.ram = ram or _ram_state(layouts)
        self.footers = footers or Footers()
        self.version = 0
        self.configuration: Configuration | None = None
        self.records: list[Record] = []
        self.described: dict[int, Device] = {}
        self.problems: list[StreamError] = []
        self.description: DescriptionRecord | None = None
        self.trailing: int | None = None
        self.ended = False
        self._headers: dict[int, Record] = {}
        self._numbered = 0
        self._commands: dict[str, int] = {}
        self._all_commands = False
        # Not a method, so that a walker is freed as soon as it is done with.
        note = partial(_note, self.problems, limits.recoveries)
        self._measurer = SectionMeasurer(
            self.reader, self.ram, self.footers, layouts, limits=limits, note=note
        )

    def continued_in(self, source: Source) -> Walker:
        """Return a walker for a further connection of the same migration.

        The two share RAM, footers and the sections that were started.
        """
        other = Walker(source, self.limits, ram=self.ram, footers=self.footers)
        other.configuration = self.configuration
        other._headers = self._headers
        return other

    def header(self) -> None:
        """Read the file header.

        :raises StreamError: this is not a stream, or not a supported one.
        """
        head = self.reader.peek(HEAD)
        if not head:
            raise Truncated(
                "the input is empty", offset=0, expected="a QEMU migration stream", found="0 bytes"
            )
        if len(head) >= len(MAGIC) and not head.startswith(MAGIC):
            kind = seen_elsewhere(head)
            raise Malformed(
                "not a QEMU migration stream" + (f", but {kind}" if kind else ""),
                offset=0,
                expected="'QEVM'",
                found=head[:8].hex(" "),
                hint=LOG_HINT if kind is None and looks_like_text(head) else None,
            )
        self.version = self.reader.structure(FileHeader, "the stream header").version
        if self.version != VERSION:
            raise Unsupported(
                "unsupported stream version",
                offset=4,
                expected=f"{VERSION}",
                found=f"{self.version}",
            )

    def next_type(self) -> int | None:
        """Return the type byte of the next record; None at the end of the input."""
        head = self.reader.peek(1)
        return head[0] if head else None

    def step(self) -> None:
        """Read one record, and PARTs without content that repeat after it.

        :raises StreamError: the record is cut, invalid or not supported; the reader is
            at its first byte again.
        """
        self._step(_MANY)

    def _step(self, least: int) -> None:
        # ``least``: repetitions that are folded into one record.
        start = self.reader.offset
        try:
            kind = self.reader.u8("the next record")
            step = self._steps.get(kind)
            if step is None:
                raise Malformed(
                    "unknown record type",
                    offset=start,
                    expected="a record type (0 to 4, 6 to 8)",
                    found=f"{kind:#04x}",
                )
            step(self, start)
        except StreamError:
            self.reader.offset = start
            raise
        if kind == RecordType.PART:
            self._fold(least)

    def steps(self) -> Iterator[Record]:
        """Read records up to the end and yield them; only the last few are kept.

        :raises StreamError: as :meth:`step`.
        """
        self._all_commands = True
        while not self.ended and self.next_type() is not None:
            self._step(1)
            yield self.records[-1]
            del self.records[:-_TURN]

    def skip_to(self, end: int) -> None:
        """Skip everything up to ``end`` as one record of RAM data."""
        start = self.reader.offset
        ids = [i for i, record in self._headers.items() if record.name == "ram"]
        self.reader.offset = end
        self._close(Record(Kind.SKIPPED, start, 0, "ram", ids[0] if ids else None))

    def lose(self, start: int, end: int) -> None:
        """Skip damaged bytes from ``start`` to ``end``."""
        self.reader.offset = end
        self._close(Record(Kind.LOST, start, 0))

    def _fold(self, least: int) -> None:
        # A sender that waits writes PARTs without content by the hundred thousand,
        # of one section or of several in turn.
        last = self.records[-1]
        marks = 0
        for record in reversed(self.records[-_TURN:]):
            if record.kind is not Kind.PART or record.size > _SMALL:
                return
            if record is not last and record.section_id == last.section_id:
                break
            if record.name == "ram":
                marks += 1
                if record.payload_size != _WORD:
                    return  # a page
        else:
            return
        period = last.end - record.end
        pattern = self.source.read_at(record.end, period)
        count = 0
        at = self.reader.offset
        while self.reader.peek(period) == pattern:
            data, start = self.reader.window(period)
            pos = start
            while data.startswith(pattern, pos):
                pos += period
            count += (pos - start) // period
            self.reader.offset += pos - start
        if count < least:
            self.reader.offset = at
            return
        for _ in range(count * marks):
            self.ram.mark(RamFlag.EOS)
        each = sum(one.offset >= record.end for one in self.records[-_TURN:])
        self._close(Record(Kind.SKIPPED, at, 0, last.name, last.section_id, count=count * each))

    # One method for each type of record.  ``start`` is the type byte's offset.

    def _configuration(self, start: int) -> None:
        machine = self.reader.structure(ConfigurationHeader, "the configuration").machine
        bits: int | None = None
        capabilities: tuple[str, ...] = ()
        uuid: bytes | None = None
        while self.reader.peek(1) == bytes((RecordType.SUBSECTION,)):
            at = self.reader.offset
            self.reader.take(1, "the configuration")
            part = self.reader.structure(
                ConfigurationSubsection, "a subsection of the configuration"
            )
            name = name_text(part.name)
            if part.value is None:
                raise Unsupported(
                    "unknown subsection of the configuration", offset=at, found=f"'{name}'"
                )
            if name.endswith("/capabilities"):
                capabilities = tuple(name_text(item) for item in part.value)
            elif name.endswith("/uuid"):
                uuid = part.value
            else:
                bits = self._page_bits(part.value, at)
        self.configuration = Configuration(name_text(machine), bits, capabilities, uuid)
        self.ram.configure(self.configuration)
        self._close(Record(Kind.CONFIGURATION, start, 0))

    @staticmethod
    def _page_bits(bits: int, at: int) -> int:
        if not 8 <= bits <= 24:
            raise Malformed(
                "invalid page size", offset=at, expected="8 to 24 bits", found=f"{bits}"
            )
        return bits

    def _start(self, start: int) -> None:
        self._named(start, Kind.START)

    def _full(self, start: int) -> None:
        self._named(start, Kind.FULL)

    def _named(self, start: int, kind: Kind) -> None:
        header = self.reader.structure(SectionHeader, "a section header")
        record = Record(
            kind,
            start,
            0,
            name_text(header.name),
            header.section_id,
            header.instance_id,
            header.version_id,
            payload=self.reader.offset,
        )
        self._headers[header.section_id] = record
        self._payload(record)

    def _part(self, start: int) -> None:
        self._referring(start, Kind.PART)

    def _end(self, start: int) -> None:
        self._referring(start, Kind.END)

    def _referring(self, start: int, kind: Kind) -> None:
        section_id = self.reader.u32("a section header")  # hot: no construct
        header = self._headers.get(section_id)
        if header is None:
            raise Malformed(
                "continuation of a section that was never started",
                offset=start,
                expected="the id of a started section",
                found=f"{section_id}",
            )
        payload = self.reader.offset
        record = Record(
            kind, start, 0, header.name, section_id, header.instance_id, header.version_id, payload
        )
        self._payload(record)

    def _command(self, start: int) -> None:
        head = self.reader.take(4, "a command")  # hot: no construct
        number, length = int.from_bytes(head[:2], "big"), int.from_bytes(head[2:], "big")
        self.reader.take(length, "a command")
        if number == Command.PACKAGED and length != 4:
            # The payload is a length.  The content follows: records without a file
            # header, which are read like all others.
            raise Malformed(
                "PACKAGED command without a length",
                offset=start,
                expected="4 bytes",
                found=f"{length}",
            )
        name, size = command_name(number), 5 + length
        self._add(Record(Kind.COMMAND, start, size, name, payload=start + 5, payload_size=length))

    def _eof(self, start: int) -> None:
        self._close(Record(Kind.EOF, start, 0))
        self.ended = True

    def _description(self, start: int) -> None:
        length = self.reader.structure(DescriptionHeader, "the description").length
        if length > self.limits.description_bytes:
            raise LimitExceeded(
                "the description is larger than the limit",
                offset=start,
                expected=f"at most {self.limits.description_bytes} bytes",
                found=f"{length}",
                hint="raise it with --limit description_bytes=NUMBER",
            )
        payload = self.reader.offset
        text = self.reader.take(length, "the description")
        self.description = DescriptionRecord(start, text)
        self._close(Record(Kind.DESCRIPTION, start, 0, payload=payload, payload_size=length))

    def _footer(self, start: int) -> NoReturn:
        found = self.reader.structure(SectionReference, "a section footer").section_id
        raise Malformed("footer without a preceding section", offset=start, found=f"id {found}")

    def _payload(self, record: Record) -> None:
        opaque, device, origin = self._measurer.measure(record)
        size = self.reader.offset - record.payload
        self.footers.skip(self.reader, record)
        if device is not None:
            self.described[record.offset] = device
        record = Record(  # hot: no replace
            record.kind,
            record.offset,
            self.reader.offset - record.offset,
            record.name,
            record.section_id,
            record.instance_id,
            record.version_id,
            record.payload,
            size,
            opaque,
            origin,
        )
        if record.kind in _NUMBERED:
            self._headers[record.section_id or 0] = record  # not also the one before
        self._add(record)

    def _close(self, record: Record) -> None:
        # The record ends at the reader's place.
        self._add(replace(record, size=self.reader.offset - record.offset))

    def _add(self, record: Record) -> None:
        self._numbered += record.kind in _NUMBERED
        if self._numbered > self.limits.records:
            raise LimitExceeded(
                "more sections than the limit allows",
                offset=record.offset,
                expected=f"at most {self.limits.records}",
                hint="raise it with --limit records=NUMBER",
            )
        last = self.records[-1] if self.records else None
        full = record.kind in _FOLDED and len(self.records) >= self.limits.records
        if full or (record.kind is Kind.COMMAND and self._often(record.name or "")):
            # Too many to list one by one.
            if last is not None and last.count and (full or last.section_id is None):
                self.records[-1] = Record(
                    Kind.SKIPPED, last.offset, last.size + record.size, last.name,
                    last.section_id, count=last.count + 1,
                )  # fmt: skip
                return
            record = Record(
                Kind.SKIPPED, record.offset, record.size, record.name, record.section_id, count=1
            )
        self.records.append(record)

    def _often(self, name: str) -> bool:
        # Whether enough records of a command are listed.
        if self._all_commands:
            return False
        key = name if is_known(name) else ""
        self._commands[key] = seen = self._commands.get(key, 0) + 1
        return seen > _EACH

    # The method for each type of record.
    _steps: ClassVar[dict[int, Callable[[Walker, int], None]]] = {
        RecordType.EOF: _eof,
        RecordType.START: _start,
        RecordType.PART: _part,
        RecordType.END: _end,
        RecordType.FULL: _full,
        RecordType.VMDESCRIPTION: _description,
        RecordType.CONFIGURATION: _configuration,
        RecordType.COMMAND: _command,
        RecordType.FOOTER: _footer,
    }


def _ram_state(layouts: Layouts) -> RamState:
    said = None if layouts.description is None else layouts.description.page_size
    for size, reason in ((layouts.page_size, GIVEN), (said, DESCRIBED)):
        if size is not None and is_page_size(size):
            return RamState(page_size=size, page_size_from=reason)
    return RamState()


def _note(problems: list[StreamError], most: int, problem: StreamError) -> None:
    # Keep a problem that does not end the walk.
    if len(problems) >= most:
        raise LimitExceeded(
            "too much damage to continue",
            offset=problem.offset,
            section=problem.section,
            expected=f"at most {most} such places",
            found=problem.what,
            hint="raise it with --limit recoveries=NUMBER",
        )
    problems.append(problem)
