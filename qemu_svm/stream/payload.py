"""Where the payload of a section ends.

RAM and what QEMU writes by hand say it themselves; a device section is measured
by its description and proved by the footer behind it; where there is no
description, the footer is searched for, or the next header.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from qemu_svm.errors import LimitExceeded, Malformed, StreamError, Truncated, Unsupported
from qemu_svm.limits import Limits
from qemu_svm.source.base import Source
from qemu_svm.stream.nonvmstate import Format, format_of
from qemu_svm.stream.ram import records as ram
from qemu_svm.stream.reader import Reader
from qemu_svm.stream.records import Kind, LayoutOrigin, Record
from qemu_svm.stream.resync import (
    FOOTER_SIZE,
    MOST_HEADER,
    find_footer,
    find_header,
    footer_bytes,
    goes_on,
    is_header,
)
from qemu_svm.stream.vmstate.decode import decode
from qemu_svm.stream.vmstate.description import Description, Device, has_null_arrays

if TYPE_CHECKING:
    from qemu_svm.stream.vmstate.dump import Dump

_PAGE_SIZES = frozenset(1 << bits for bits in range(10, 25))


class Measured(NamedTuple):
    """How the end of a payload was found.

    :param opaque: by searching for a footer or the next header.
    :param described: origin of the section's layout.
    """

    opaque: bool
    described: LayoutOrigin


class Payloads:
    """What is needed to step over payloads, and what comes of it.

    ``described`` maps the offset of a section's record to its description.
    """

    def __init__(
        self,
        source: Source,
        limits: Limits,
        description: Description | None,
        origin: LayoutOrigin,
        dump: Dump | None = None,
    ) -> None:
        self.source = source
        self.limits = limits
        self.reader = Reader(source)
        self.problems: list[StreamError] = []
        self.ram = ram.RamState()
        size = description.page_size if description is not None else None
        if size is not None and size in _PAGE_SIZES:
            self.ram.page_size = size
        self.footers: bool | None = None
        self.origin = origin
        self.dump = dump
        self.described: dict[int, Device] = {}
        # Two sections may share name and instance (the ISA IDE ports do), so
        # descriptions are handed out in order.
        self._devices: dict[tuple[str, int], deque[Device]] = {}
        for device in description.devices if description is not None else ():
            self._devices.setdefault((device.name, device.instance_id), deque()).append(device)

    def note(self, problem: StreamError) -> None:
        """Keep a problem that does not end the reading.

        :raises LimitExceeded: there are too many.
        """
        if len(self.problems) >= self.limits.recoveries:
            raise LimitExceeded(
                "too much is damaged to read on",
                offset=problem.offset,
                section=problem.section,
                expected=f"at most {self.limits.recoveries} such places",
                found=problem.what,
                hint="--limit recoveries=NUMBER raises it",
            )
        self.problems.append(problem)

    def measure(self, record: Record) -> Measured:
        """Move behind the payload that starts at the reader's place.

        :raises StreamError: it is cut or damaged.
        """
        opaque, described = False, LayoutOrigin.NONE
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
            opaque, full = True, record.kind is Kind.FULL
            if full and self._builtin_before_footer(record):
                described = LayoutOrigin.BUILTIN
            else:
                self._search(record)
                described = self._guessed(record) if full else LayoutOrigin.NONE
        return Measured(opaque, described)

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
        self.note(_not_cut(problem, self.reader.offset))
        self.reader.offset = record.payload
        return False

    def _unmarked(self, record: Record) -> Measured:
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
                return Measured(opaque=True, described=LayoutOrigin.NONE)
            # What stands behind it is damaged, and told by the next step.
        device, self.reader.offset = (proved or fitting)[0]
        self.described[record.offset] = device
        return Measured(opaque=False, described=LayoutOrigin.BUILTIN)

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

    def _guessed(self, record: Record) -> LayoutOrigin:
        # A built-in layout counts only if it fills the section exactly, or up
        # to a subsection that is newer than the layout.
        for device, end in self._fitting(record):
            prefix = f"{device.layout.name}/".encode()
            behind = self.source.read_at(end, 2 + len(prefix))
            newer = behind[:1] == b"\5" and behind[2:] == prefix and end < self.reader.offset
            if end == self.reader.offset or newer:
                self.described[record.offset] = device
                return LayoutOrigin.BUILTIN
        if self.dump is not None and self._dumped(record, self.dump):
            return LayoutOrigin.DUMP
        return LayoutOrigin.NONE

    def _dumped(self, record: Record, dump: Dump) -> bool:
        # Whether a dump's layout fills the section, up to the reader's place.
        from qemu_svm.stream.vmstate.fit import fitted

        name, size = record.name or "", self.reader.offset - record.payload
        layouts = dump.of_section(name)
        if not layouts or size > self.limits.section_bytes:
            return False
        payload = self.source.read_at(record.payload, size)
        layout = fitted(layouts, record.version_id or 0, payload)
        if layout is None:
            return False
        self.described[record.offset] = Device(name, record.instance_id or 0, layout, size)
        return True

    def _fitting(self, record: Record) -> Iterator[tuple[Device, int]]:
        # Built-in layouts that can be read here, and where they end.
        from qemu_svm.stream.vmstate import builtin

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
            if self.origin is LayoutOrigin.EMBEDDED:
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
        if self.origin is LayoutOrigin.BORROWED or has_null_arrays(device.layout):
            return False  # another stream's layout, or one that QEMU left incomplete
        if find_footer(self.source, record.payload, record.section_id or 0) is None:
            raise problem
        self.note(problem)
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

    def _builtin_before_footer(self, record: Record) -> bool:
        # Where a built-in layout leads to a footer, no bytes of a guest in between
        # can be taken for one.
        wanted = footer_bytes(record.section_id or 0)
        for device, end in self._fitting(record):
            behind = self.source.read_at(end, FOOTER_SIZE + MOST_HEADER)
            if behind.startswith(wanted) and goes_on(behind[FOOTER_SIZE:]):
                self.described[record.offset], self.reader.offset = device, end
                return True
        return False

    def skip_footer(self, record: Record) -> None:
        """Move behind the footer of ``record``; none is there in old streams.

        :raises StreamError: something else stands there.
        """
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

    def _device(self, record: Record) -> Device | None:
        queue = self._devices.get((record.name or "", record.instance_id or 0))
        return queue.popleft() if queue else None


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
