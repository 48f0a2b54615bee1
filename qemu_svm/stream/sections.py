"""Where the payload of a section ends, and which layout it has.

Nothing on the wire says how long a section is:

* RAM, and the sections that QEMU writes by hand, contain their own end;
* a device section is as long as its description says, proved by the footer that
  follows;
* without a description, a built-in layout is tried, then the footer is searched
  for; in a stream without footers, the header of the next section.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from qemu_svm.errors import LimitExceeded, Malformed, StreamError, Truncated, Unsupported
from qemu_svm.limits import Limits
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
    is_header,
    starts_record,
)
from qemu_svm.stream.vmstate.decode import decode
from qemu_svm.stream.vmstate.description import Description, Device, has_null_arrays

if TYPE_CHECKING:
    from qemu_svm.stream.vmstate.dump import Dump


@dataclass(frozen=True, slots=True)
class Layouts:
    """What is known about the layouts of device sections before a walk.

    :param origin: of these layouts; ``NONE`` if nothing is known.
    :param description: embedded in the stream, or borrowed.
    :param dump: of QEMU's ``-dump-vmstate``, for a stream without a description.
    :param page_size: that was given; None to take it from the stream.
    """

    origin: LayoutOrigin = LayoutOrigin.NONE
    description: Description | None = None
    dump: Dump | None = None
    page_size: int | None = None


NO_LAYOUTS = Layouts()


def borrowed_layouts(lent: Description | Dump) -> Layouts:
    """Layouts for a stream that lacks a description."""
    if isinstance(lent, Description):
        return Layouts(LayoutOrigin.BORROWED, lent)
    return Layouts(LayoutOrigin.DUMP, dump=lent)


class Measured(NamedTuple):
    """How the end of a payload was found.

    :param opaque: by searching for a footer or the next header.
    :param device: the section's layout; None if it is unknown.
    :param origin: of the layout.
    """

    opaque: bool = False
    device: Device | None = None
    origin: LayoutOrigin = LayoutOrigin.NONE


class Footers:
    """The footers of sections, which repeat the section's id.

    Machine types of QEMU 2.3 and older send none.

    :ivar present: None until the end of the first section has shown it.
    """

    def __init__(self) -> None:
        self.present: bool | None = None

    @property
    def absent(self) -> bool:
        """Whether the stream is known to have no footers."""
        return self.present is False

    def skip(self, reader: Reader, record: Record) -> None:
        """Move ``reader`` past the footer of ``record``, if the stream has footers.

        :raises StreamError: it is missing, cut or another section's.
        """
        head = reader.peek(FOOTER_SIZE)
        wanted = footer_bytes(record.section_id or 0)
        if self.present is None and len(head) == FOOTER_SIZE:
            self.present = head == wanted
        if self.absent:
            return
        if len(head) < FOOTER_SIZE and wanted.startswith(head):
            raise reader.truncated("a section footer", FOOTER_SIZE, len(head), section=record.name)
        if head != wanted:
            raise Malformed(
                "section is not followed by its footer",
                offset=reader.offset,
                section=record.name,
                expected=wanted.hex(" "),
                found=head.hex(" "),
            )
        reader.offset += FOOTER_SIZE


class SectionMeasurer:
    """Moves a reader past the payloads of sections.

    :param reader: at the payload whenever :meth:`measure` is called.
    :param ram: state of the ``ram`` section, which has many parts.
    :param note: called with problems that do not end the walk.
    """

    def __init__(
        self,
        reader: Reader,
        ram: ram.RamState,
        footers: Footers,
        layouts: Layouts,
        *,
        limits: Limits,
        note: Callable[[StreamError], None],
    ) -> None:
        self._reader = reader
        self._source = reader.source
        self._ram = ram
        self._footers = footers
        self._layouts = layouts
        self._limits = limits
        self._note = note
        # Two sections may share name and instance (the ISA IDE ports do), so
        # descriptions are used up in order: the next one is the last of its list.
        self._devices: dict[tuple[str, int], list[Device]] = {}
        description = layouts.description
        for device in reversed(description.devices) if description is not None else ():
            self._devices.setdefault((device.name, device.instance_id), []).append(device)

    def measure(self, record: Record) -> Measured:
        """Move the reader from the start of a payload to its end.

        :raises StreamError: the payload is cut or damaged.
        """
        full = record.kind is Kind.FULL
        if record.name == "ram" and not full:
            self._ram.section_id = record.section_id
            ram.step_over(self._reader, self._ram)
            return Measured()
        form = format_of(record)
        if form is not None and self._measured_by_format(record, form):
            return self._described(self._next_device(record) if full else None)
        if full:
            return self._measured_device(record)
        self._search_footer(record)
        return Measured(opaque=True)

    def _measured_device(self, record: Record) -> Measured:
        device = self._next_device(record)
        if device is not None and self._measured_by_description(record, device):
            return self._described(device)
        if self._footers.absent:
            return self._without_footer(record)
        device = self._builtin_before_footer(record)
        if device is not None:
            return Measured(opaque=True, device=device, origin=LayoutOrigin.BUILTIN)
        self._search_footer(record)
        return self._guessed(record)

    def _described(self, device: Device | None) -> Measured:
        if device is None:
            return Measured()
        return Measured(device=device, origin=self._layouts.origin)

    def _next_device(self, record: Record) -> Device | None:
        left = self._devices.get((record.name or "", record.instance_id or 0))
        return left.pop() if left else None

    def _measured_by_format(self, record: Record, form: Format) -> bool:
        # Sections that QEMU writes by hand contain their own end.  If it is damaged,
        # or cannot be known, False: then the footer is searched for.
        reader = self._reader
        problem: StreamError
        try:
            if not form.step_over(reader, record.kind):
                reader.offset = record.payload
                return False
            # At the end of the input, what is left of the footer counts.
            head = reader.peek(FOOTER_SIZE)
            if not self._footers.present or _footer_of(record).startswith(head):
                return True
            problem = Malformed(
                "section data continues past its end marker",
                offset=reader.offset,
                expected="its footer",
                found=head.hex(" "),
            )
        except StreamError as error:
            problem = error
        problem.section = form.name
        if self._footers.absent or self._find_footer(record) is None:
            raise problem
        self._note(_not_cut(problem, reader.offset))
        reader.offset = record.payload
        return False

    def _measured_by_description(self, record: Record, device: Device) -> bool:
        # By the sizes in the description; if no footer follows, by what is on the
        # wire.  If no footer follows then either, False: it is searched for.
        reader = self._reader
        origin = self._layouts.origin
        reader.offset = record.payload + device.payload_size
        if self._at_footer(record):
            return True
        reader.offset = record.payload
        problem: StreamError
        try:
            decode(reader, device.layout, device.name, self._limits)
        except (Malformed, LimitExceeded) as error:
            problem = error
        except Truncated as error:
            if origin is LayoutOrigin.EMBEDDED:
                raise
            problem = error
        else:
            if self._footers.absent or self._at_footer(record):
                return True
            problem = Malformed(
                "section length differs from its description",
                offset=record.payload,
                section=device.name,
                expected=f"a footer at {record.payload + device.payload_size:#x}",
                found=reader.peek(FOOTER_SIZE).hex(" "),
            )
        reader.offset = record.payload
        if origin is LayoutOrigin.BORROWED or has_null_arrays(device.layout):
            return False  # another stream's layout, or one that QEMU left incomplete
        if self._find_footer(record) is None:
            raise problem
        self._note(problem)
        return False

    def _without_footer(self, record: Record) -> Measured:
        # Neither description nor footer: a built-in layout that a record follows,
        # else everything up to the next section's header.
        fitting = list(self._builtin_layouts(record))
        proved = [entry for entry in fitting if self._section_or_end_at(entry[1])]
        if not proved:
            found = find_header(self._source, record.payload)
            if found is not None:
                fitting = [entry for entry in fitting if entry[1] <= found]
            if not fitting:
                self._reader.offset = self._found(record, found, "the next section or EOF")
                return Measured(opaque=True)
            # What follows the layout is damaged; the next step reports it.
        device, self._reader.offset = (proved or fitting)[0]
        return Measured(device=device, origin=LayoutOrigin.BUILTIN)

    def _section_or_end_at(self, offset: int) -> bool:
        # Whether the next section, or the stream's EOF, is at ``offset``.
        head = self._source.read_at(offset, MOST_HEADER)
        end = len(head) < MOST_HEADER and head[:1] == b"\0" and not head.strip(b"\0")
        return end or is_header(head, 0)

    def _builtin_before_footer(self, record: Record) -> Device | None:
        # A built-in layout that leads to a footer.  Preferred to a search, which may
        # be misled by bytes of the guest that look like a footer.
        wanted = _footer_of(record)
        for device, end in self._builtin_layouts(record):
            after = self._source.read_at(end, FOOTER_SIZE + MOST_HEADER)
            if after.startswith(wanted) and starts_record(after[FOOTER_SIZE:]):
                self._reader.offset = end
                return device
        return None

    def _guessed(self, record: Record) -> Measured:
        # The layout of a section whose end was searched for.  A built-in layout
        # must fill it exactly, or up to a subsection that is newer than the layout.
        end = self._reader.offset
        for device, reached in self._builtin_layouts(record):
            prefix = f"{device.layout.name}/".encode()
            after = self._source.read_at(reached, 2 + len(prefix))
            newer = after[:1] == b"\5" and after[2:] == prefix and reached < end
            if reached == end or newer:
                return Measured(opaque=True, device=device, origin=LayoutOrigin.BUILTIN)
        dump = self._layouts.dump
        fits = None if dump is None else self._dump_layout(record, dump)
        if fits is None:
            return Measured(opaque=True)
        return Measured(opaque=True, device=fits, origin=LayoutOrigin.DUMP)

    def _dump_layout(self, record: Record, dump: Dump) -> Device | None:
        # The dump's layout that fills the section, which ends at the reader's place.
        from qemu_svm.stream.vmstate.fit import fitted

        name, size = record.name or "", self._reader.offset - record.payload
        layouts = dump.of_section(name)
        if not layouts or size > self._limits.section_bytes:
            return None
        payload = self._source.read_at(record.payload, size)
        layout = fitted(layouts, record.version_id or 0, payload)
        return None if layout is None else Device(name, record.instance_id or 0, layout, size)

    def _builtin_layouts(self, record: Record) -> Iterator[tuple[Device, int]]:
        # Built-in layouts that can be decoded here, and where they end.
        from qemu_svm.stream.vmstate import builtin

        for device in builtin.candidates(
            record.name or "", record.instance_id or 0, record.version_id or 0
        ):
            reader = Reader(self._source, record.payload)
            try:
                decode(reader, device.layout, device.name, self._limits)
            except StreamError:
                continue
            yield device, reader.offset

    def _at_footer(self, record: Record) -> bool:
        return self._reader.peek(FOOTER_SIZE) == _footer_of(record)

    def _find_footer(self, record: Record) -> int | None:
        return find_footer(self._source, record.payload, record.section_id or 0)

    def _search_footer(self, record: Record) -> None:
        if self._footers.absent:
            raise Unsupported(
                "section of unknown length",
                offset=record.offset,
                section=record.name,
                hint="the stream has neither a description of it nor footers",
            )
        self._reader.offset = self._found(record, self._find_footer(record), "its footer")

    def _found(self, record: Record, offset: int | None, what: str) -> int:
        # ``offset``, where a search for the section's end led to.
        if offset is None:
            raise Truncated(
                f"the input ends inside a section that starts at {record.offset:#x}",
                offset=self._source.size(),
                section=record.name,
                expected=what,
                found="none before the end of the input",
            )
        return offset


def _footer_of(record: Record) -> bytes:
    return footer_bytes(record.section_id or 0)


def _not_cut(error: StreamError, offset: int) -> StreamError:
    # The section's footer exists, so a length in the section must be wrong.
    if not isinstance(error, Truncated):
        return error
    return Malformed(
        "length field points past the end of the input",
        offset=offset,
        section=error.section,
        expected=error.expected,
        found=error.found,
    )
