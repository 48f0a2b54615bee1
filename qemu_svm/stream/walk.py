"""Record by record through a stream.

The walker stands at the first byte of a record, reads it whole and steps to
the next; a table at the end says which method reads which type.  What a
device section holds is not decoded here, only measured: by its description
and proved by the footer behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, NoReturn

from qemu_svm.errors import LimitExceeded, Malformed, StreamError, Truncated, Unsupported
from qemu_svm.limits import Limits
from qemu_svm.source.base import Source
from qemu_svm.stream import ram
from qemu_svm.stream.constants import MAGIC, VERSION, Command, RamFlag, RecordType
from qemu_svm.stream.nonvmstate import Format, format_of
from qemu_svm.stream.reader import Reader
from qemu_svm.stream.records import Configuration, Kind, Record, command_name
from qemu_svm.stream.resync import (
    FOOTER_SIZE,
    MOST_HEADER,
    find_footer,
    find_header,
    footer_bytes,
    is_header,
)
from qemu_svm.stream.structs import (
    CommandRecord,
    ConfigurationHeader,
    ConfigurationSubsection,
    DescriptionHeader,
    FileHeader,
    SectionHeader,
    SectionReference,
)
from qemu_svm.stream.text import name_text
from qemu_svm.stream.vmdesc import Description, Device, has_null_arrays
from qemu_svm.stream.vmstate import decode

_SEEN_ELSEWHERE = (
    (b"LibvirtQemud", "a libvirt save image"),
    (b"QFI\xfb", "a qcow2 image"),
    (b"\x7fELF", "an ELF file"),
    (b"MVEQ", "a stream with its bytes swapped"),
    (b"QCPR", "a CPR state file, not a migration stream"),
    (b"\0\2\0\4", "the return path of a migration: what the destination answered"),
    (b"\x11\x22\x33\x44", "an extra multifd channel, not the main one"),
    (b"\x89LZO", "lzop-compressed data"),
)


def _not_cut(error: StreamError, offset: int) -> StreamError:
    # The section's footer is there, so a length in front of it must be wrong.
    if not isinstance(error, Truncated):
        return error
    return Malformed(
        "a length that leads behind the end of the input",
        offset=offset,
        section=error.section,
        expected=error.expected,
        found=error.found,
    )


_WORD = 8  # payload of a RAM section with nothing but its end
_SMALL = 64  # bytes of a PART that may be one of very many
_TURN = 5  # so many PARTs back the same section is looked for
_MANY = 16  # repetitions that are worth it
_PAGE_SIZES = frozenset(1 << bits for bits in range(10, 25))


class Walker:
    """State of a walk; results are in the public attributes.

    ``described`` maps the offset of a section's record to its description.

    :param description: of the devices, if it is known already.
    :param origin: where that comes from, ``embedded`` or ``borrowed``.
    """

    def __init__(
        self,
        source: Source,
        limits: Limits,
        description: Description | None,
        origin: str = "embedded",
    ) -> None:
        self.source = source
        self.limits = limits
        self.description = description
        self.reader = Reader(source)
        self.version = 0
        self.configuration: Configuration | None = None
        self.records: list[Record] = []
        self.problems: list[StreamError] = []
        self.ram = ram.RamState()
        size = description.page_size if description is not None else None
        if size is not None and size in _PAGE_SIZES:
            self.ram.page_size = size
        self.footers: bool | None = None
        self.origin = origin
        self.ended = False
        self.description_at: int | None = None
        self.description_text: bytes | None = None
        self._headers: dict[int, Record] = {}
        self.described: dict[int, Device] = {}
        # Two sections may share name and instance (the ISA IDE ports do), so
        # descriptions are handed out in order.
        self._devices: dict[tuple[str, int], deque[Device]] = {}
        for device in description.devices if description is not None else ():
            self._devices.setdefault((device.name, device.instance_id), deque()).append(device)

    def _device(self, record: Record) -> Device | None:
        queue = self._devices.get((record.name or "", record.instance_id or 0))
        return queue.popleft() if queue else None

    def header(self) -> None:
        """Read the file header."""
        head = self.reader.peek(12)
        if len(head) >= len(MAGIC) and not head.startswith(MAGIC):
            kind = next((name for magic, name in _SEEN_ELSEWHERE if head.startswith(magic)), None)
            raise Malformed(
                "not a QEMU migration stream" + (f" but {kind}" if kind else ""),
                offset=0,
                expected="'QEVM'",
                found=head[:8].hex(" "),
            )
        self.version = self.reader.structure(FileHeader, "the stream header").version
        if self.version != VERSION:
            raise Unsupported(
                "a stream version that no current QEMU writes",
                offset=4,
                expected=f"{VERSION}",
                found=f"{self.version}",
            )

    def next_type(self) -> int | None:
        """Type byte of the next record; None where the records end."""
        head = self.reader.peek(1)
        return head[0] if head else None

    def step(self) -> None:
        """Read one record.

        :raises StreamError: and leaves the reader at the record's first byte.
        """
        start = self.reader.offset
        try:
            kind = self.reader.u8("the next record")
            step = self._steps.get(kind)
            if step is None:
                raise Malformed(
                    "a record of unknown type",
                    offset=start,
                    expected="a record type (0 to 4, 6 to 8)",
                    found=f"{kind:#04x}",
                )
            step(self, start)
        except StreamError:
            self.reader.offset = start
            raise
        if kind == RecordType.PART:
            self._fold()

    def skip_to(self, end: int) -> None:
        """Step over everything up to ``end`` as one record of RAM data."""
        start = self.reader.offset
        ids = [i for i, record in self._headers.items() if record.name == "ram"]
        self.reader.offset = end
        self._close(Record(Kind.SKIPPED, start, 0, "ram", ids[0] if ids else None))

    def lose(self, start: int, end: int) -> None:
        """Step over ``start`` to ``end`` as bytes that are no record."""
        self.reader.offset = end
        self._close(Record(Kind.LOST, start, 0))

    def _fold(self) -> None:
        # A sender that waits for something writes PARTs with nothing in them by
        # the hundred thousand, of one section or of several in turn.
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
        if count < _MANY:
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
                    "an unknown subsection of the configuration", offset=at, found=f"'{name}'"
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
        if not 10 <= bits <= 24:
            raise Malformed(
                "an impossible page size", offset=at, expected="10 to 24 bits", found=f"{bits}"
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
                "a section goes on that never started",
                offset=start,
                expected="the id of a section that was started",
                found=f"{section_id}",
            )
        self._payload(replace(header, kind=kind, offset=start, payload=self.reader.offset))

    def _command(self, start: int) -> None:
        command = self.reader.structure(CommandRecord, "a command")
        name = command_name(command.command)
        if command.command == Command.PACKAGED and len(command.payload) != 4:
            # Its length is the payload; its content is records without a
            # header of their own, and they are read like all others.
            raise Malformed(
                "a package without a length",
                offset=start,
                expected="4 bytes",
                found=f"{len(command.payload)}",
            )
        payload = start + 5
        size = self.reader.offset - payload
        self._close(Record(Kind.COMMAND, start, 0, name, payload=payload, payload_size=size))

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
            )
        payload = self.reader.offset
        self.description_text = self.reader.take(length, "the description")
        self.description_at = payload
        self._close(Record(Kind.DESCRIPTION, start, 0, payload=payload, payload_size=length))

    def _footer(self, start: int) -> NoReturn:
        found = self.reader.structure(SectionReference, "a section footer").section_id
        raise Malformed("a section footer without a section", offset=start, found=f"id {found}")

    # Payloads.

    def _payload(self, record: Record) -> None:
        opaque, described = False, "none"
        if record.name == "ram" and record.kind is not Kind.FULL:
            ram.step_over(self.reader, self.ram)
        elif (form := format_of(record)) is not None and self._formed(record, form):
            if record.kind is Kind.FULL and (device := self._device(record)) is not None:
                self.described[record.offset] = device
                described = self.origin
        elif (
            record.kind is Kind.FULL
            and (device := self._device(record)) is not None
            and self._described(record, device)
        ):
            self.described[record.offset] = device
            described = self.origin
        elif self.footers is False and record.kind is Kind.FULL:
            opaque, described = self._unmarked(record)
        else:
            self._search(record)
            opaque = True
            if record.kind is Kind.FULL and self._guessed(record):
                described = "builtin"
        size = self.reader.offset - record.payload
        self._skip_footer(record)
        self._close(record, payload_size=size, opaque=opaque, described=described)

    def _formed(self, record: Record, form: Format) -> bool:
        # What QEMU writes by hand has its own end; a damaged one, and what no
        # length tells, have their footer.
        problem: StreamError
        try:
            if not form.step_over(self.reader, record.kind):
                self.reader.offset = record.payload
                return False
            if not self.footers or self._footer_near(record):
                return True
            problem = Malformed(
                "a section that goes on behind its end",
                offset=self.reader.offset,
                expected="its footer",
                found=self.reader.peek(FOOTER_SIZE).hex(" "),
            )
        except StreamError as error:
            problem = error
        problem.section = form.name
        if self.footers is False or (
            find_footer(self.source, record.payload, record.section_id or 0) is None
        ):
            raise problem
        self.problems.append(_not_cut(problem, self.reader.offset))
        self.reader.offset = record.payload
        return False

    def _unmarked(self, record: Record) -> tuple[bool, str]:
        # Neither description nor footer: a built-in layout behind which
        # something like a record stands, else up to the next section's header.
        fitting = list(self._fitting(record))
        proved = [entry for entry in fitting if self._goes_on(entry[1])]
        if not proved:
            found = find_header(self.source, record.payload)
            if found is not None:
                fitting = [entry for entry in fitting if entry[1] <= found]
            if not fitting:
                self.reader.offset = self._found(record, found, "the next section, or the EOF")
                return True, "none"
            # What stands behind it is damaged, and told by the next step.
        device, self.reader.offset = (proved or fitting)[0]
        self.described[record.offset] = device
        return False, "builtin"

    def _goes_on(self, offset: int) -> bool:
        # Whether the next section, or the EOF, stands there.
        behind = self.source.read_at(offset, MOST_HEADER)
        last = len(behind) < MOST_HEADER and behind[:1] == b"\0" and not behind.strip(b"\0")
        return last or is_header(behind, 0)

    def _found(self, record: Record, offset: int | None, what: str) -> int:
        # The end of a section that was searched for.
        if offset is None:
            raise Truncated(
                f"the input ends inside a section that starts at {record.offset:#x}",
                offset=self.source.size(),
                section=record.name,
                expected=what,
                found="none up to the end",
            )
        return offset

    def _guessed(self, record: Record) -> bool:
        # A built-in layout counts only if it fills the section exactly, or up
        # to a subsection that is newer than the layout.
        for device, end in self._fitting(record):
            prefix = f"{device.layout.name}/".encode()
            behind = self.source.read_at(end, 2 + len(prefix))
            newer = behind[:1] == b"\5" and behind[2:] == prefix and end < self.reader.offset
            if end == self.reader.offset or newer:
                self.described[record.offset] = device
                return True
        return False

    def _fitting(self, record: Record) -> Iterator[tuple[Device, int]]:
        # Built-in layouts that can be read here, and where they end.
        from qemu_svm.stream import builtin

        for device in builtin.candidates(
            record.name or "", record.instance_id or 0, record.version_id or 0
        ):
            reader = Reader(self.source, record.payload)
            try:
                decode(reader, device.layout, device.name, self.limits)
            except StreamError:
                continue
            yield device, reader.offset

    def _described(self, record: Record, device: Device) -> bool:
        # Measured by the description's sizes; where the footer is not there,
        # by what the wire itself says; at last by searching for the footer.
        self.reader.offset = record.payload + device.payload_size
        if self._footer_here(record):
            return True
        self.reader.offset = record.payload
        problem: StreamError
        try:
            decode(self.reader, device.layout, device.name, self.limits)
        except (Malformed, LimitExceeded) as error:
            problem = error
        except Truncated as error:
            if self.origin == "embedded":
                raise
            problem = error
        else:
            if self.footers is False or self._footer_here(record):
                return True
            problem = Malformed(
                "a section is not as long as its description says",
                offset=record.payload,
                section=device.name,
                expected=f"a footer at {record.payload + device.payload_size:#x}",
                found=self.reader.peek(FOOTER_SIZE).hex(" "),
            )
        self.reader.offset = record.payload
        if self.origin == "borrowed" or has_null_arrays(device.layout):
            return False  # another stream's layout, or one that QEMU left incomplete
        if find_footer(self.source, record.payload, record.section_id or 0) is None:
            raise problem
        self.problems.append(problem)
        return False

    def _footer_near(self, record: Record) -> bool:
        # Whether a footer, or what is left of it, stands here.
        head = self.reader.peek(FOOTER_SIZE)
        return footer_bytes(record.section_id or 0).startswith(head)

    def _footer_here(self, record: Record) -> bool:
        return self.reader.peek(FOOTER_SIZE) == footer_bytes(record.section_id or 0)

    def _search(self, record: Record) -> None:
        if self.footers is False:
            raise Unsupported(
                "a section whose length nothing tells",
                offset=record.offset,
                section=record.name,
                hint="the stream has neither a description of it nor footers",
            )
        found = find_footer(self.source, record.payload, record.section_id or 0)
        self.reader.offset = self._found(record, found, "its footer")

    def _skip_footer(self, record: Record) -> None:
        head = self.reader.peek(FOOTER_SIZE)
        wanted = footer_bytes(record.section_id or 0)
        if self.footers is None and len(head) == FOOTER_SIZE:
            # Old machine types send none: decided once, at the first section.
            self.footers = head == wanted
        if self.footers is False:
            return
        if len(head) < FOOTER_SIZE and wanted.startswith(head):
            raise self.reader.truncated(
                "a section footer", FOOTER_SIZE, len(head), section=record.name
            )
        if head != wanted:
            raise Malformed(
                "a section does not end with its footer",
                offset=self.reader.offset,
                section=record.name,
                expected=wanted.hex(" "),
                found=head.hex(" "),
            )
        self.reader.offset += FOOTER_SIZE

    def _close(self, record: Record, **changes: Any) -> None:
        # The record ends where the reader stands.
        size = self.reader.offset - record.offset
        last = self.records[-1] if self.records else None
        if record.kind is Kind.PART and len(self.records) >= self.limits.records:
            # Too many to list one by one.
            if last is not None and last.count:
                self.records[-1] = replace(last, size=last.size + size, count=last.count + 1)
                return
            record = Record(Kind.SKIPPED, record.offset, 0, record.name, record.section_id, count=1)
            changes = {}
        self.records.append(replace(record, size=size, **changes))

    # The state table: what to do for each type of record.
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
