"""A whole stream: its records, their meaning together, and what is wrong.

:func:`read_stream` never raises for damage after the file header: it returns
everything that could be read, and the errors in :attr:`Stream.problems`.

A stream with a description is read from both ends: forwards to the RAM data,
then the chain of device sections that the description at the end leads to.  The
RAM data between is skipped as one record unless it is small or requested, so the
time does not grow with the guest's memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from qemu_svm.errors import (
    LimitExceeded,
    Malformed,
    SourceError,
    StreamError,
    Truncated,
    Unsupported,
)
from qemu_svm.limits import DEFAULT, MIB, Limits
from qemu_svm.source.base import Source
from qemu_svm.stream.constants import RecordType
from qemu_svm.stream.nonvmstate import format_of
from qemu_svm.stream.ram.page_size import ASSUMED
from qemu_svm.stream.reader import Reader
from qemu_svm.stream.records import (
    Configuration,
    DescriptionRecord,
    Kind,
    LayoutOrigin,
    RamBlock,
    RamPages,
    Record,
)
from qemu_svm.stream.resync import FOOTER_SIZE, find_header, footer_bytes, next_boundary
from qemu_svm.stream.sections import NO_LAYOUTS, Layouts, borrowed_layouts
from qemu_svm.stream.tail import find_chain, find_description
from qemu_svm.stream.vmstate import description as vmdesc
from qemu_svm.stream.vmstate.decode import decode, first
from qemu_svm.stream.vmstate.description import Description, Device
from qemu_svm.stream.vmstate.values import Value
from qemu_svm.stream.walk import Walker

if TYPE_CHECKING:
    from qemu_svm.stream.ram.laid import Laid
    from qemu_svm.stream.vmstate.dump import Dump

_CHECKED = 64 * MIB  # of trailing data
_RAM_DATA = frozenset({RecordType.PART, RecordType.END})


class Walk(Enum):
    """How to read the records."""

    QUICK = "quick"
    """From both ends; skip large RAM data."""
    RAM = "ram"
    """From both ends, and every RAM record between."""
    LINEAR = "linear"
    """Front to back."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream as read.

    :param pages: page records by kind; None if RAM data was skipped.
    :param page_size_from: what says that this is the page size.
    :param layouts: the description or dump that device sections were read with.
    :param described: description of a section by the offset of its record.
    :param footers: sections end with their id (not those of 2.3 and older machine types).
    :param complete: the end of the stream was reached, nothing is cut off.
    :param shared_names: names that several device sections have.
    :param trailing: offset of other data after the stream and its description; None if
        there is none.
    :param laid: guest memory that is in a file beside the input, as it is; None in a stream.
    """

    source: Source
    version: int
    configuration: Configuration | None
    records: tuple[Record, ...]
    blocks: tuple[RamBlock, ...]
    pages: RamPages | None
    page_size: int
    page_size_from: str
    layouts: Layouts
    described: Mapping[int, Device]
    problems: tuple[StreamError, ...]
    footers: bool
    complete: bool
    limits: Limits
    shared_names: frozenset[str]
    trailing: int | None = None
    laid: Laid | None = None

    @property
    def description(self) -> Description | None:
        """The description, embedded or borrowed."""
        return self.layouts.description

    @property
    def description_source(self) -> LayoutOrigin:
        """Origin of the layouts; never ``BUILTIN``, which is for single sections."""
        return self.layouts.origin

    @property
    def lent(self) -> Description | Dump | None:
        """The description or the dump that was borrowed for this stream."""
        borrowed = self.layouts.origin is LayoutOrigin.BORROWED
        return self.layouts.description if borrowed else self.layouts.dump

    def sections(self) -> Iterator[Record]:
        """Device sections, in stream order."""
        return (record for record in self.records if record.kind is Kind.FULL)

    def device(self, record: Record) -> Device | None:
        """Return the layout of a device section; None if it is unknown."""
        return self.described.get(record.offset)

    def values(self, record: Record) -> Value | None:
        """Decode a section; None if its layout is unknown.

        :raises StreamError: the content contradicts the layout.
        """
        if record.payload_size > self.limits.section_bytes:
            raise LimitExceeded(
                "the section is larger than the limit",
                offset=record.offset,
                section=record.name,
                expected=f"at most {self.limits.section_bytes} bytes",
                found=f"{record.payload_size}",
                hint="raise it with --limit section_bytes=NUMBER",
            )
        form = format_of(record)
        if form is not None:
            try:
                return form.values(Reader(self.source, record.payload), record, self.limits)
            except (Malformed, Truncated):
                if not record.opaque:
                    raise
        device = self.device(record)
        if device is None:
            return None
        reader = Reader(self.source, record.payload)
        return decode(reader, device.layout, device.name, self.limits)

    def first_value(self, record: Record, kinds: frozenset[str]) -> Value | None:
        """Return the first field of a section whose type is one of ``kinds``, if it has one.

        No more of the section is decoded than leads there.

        :raises StreamError: the content contradicts the layout.
        """
        device = self.device(record)
        if device is None or record.payload_size > self.limits.section_bytes:
            return None
        reader = Reader(self.source, record.payload)
        return first(reader, device.layout, device.name, kinds, self.limits)


def read_stream(
    source: Source,
    limits: Limits = DEFAULT,
    walk: Walk = Walk.QUICK,
    borrowed: Description | Dump | None = None,
    page_size: int | None = None,
) -> Stream:
    """Read a stream.

    :param borrowed: description of another stream, or a dump; used if this one has none.
    :param page_size: of the guest, whatever the stream says; a power of two.
    :raises StreamError: ``source`` does not start like a stream.
    :raises SourceError: decompression fails before the header is read.
    """
    try:
        Walker(source, limits).header()
    except StreamError as error:
        if source.damage is not None:  # why the bytes are missing
            raise source.damage from error
        error.path = source.path
        raise
    unparsed: list[StreamError] = []
    attempts = _attempts(_Given(source, limits, borrowed, page_size), walk, unparsed)
    walker = next(walker for walker in attempts if walker is not None)
    problems = walker.problems + unparsed
    if source.damage is not None:
        problems.append(_source_problem(source, source.damage))
    skipped = any(r.kind is Kind.SKIPPED and not r.count for r in walker.records)
    return Stream(
        source=source,
        version=walker.version,
        configuration=walker.configuration,
        records=tuple(walker.records),
        blocks=walker.ram.blocks,
        pages=None if skipped else walker.ram.pages,
        page_size=walker.ram.page_size,
        page_size_from=walker.ram.page_size_from or ASSUMED,
        layouts=walker.layouts,
        described=walker.described,
        problems=tuple(problems),
        footers=not walker.footers.absent,
        complete=walker.ended and not any(isinstance(p, Truncated) for p in problems),
        limits=limits,
        shared_names=_shared_names(walker.records),
        trailing=walker.trailing,
    )


@dataclass(frozen=True, slots=True)
class _Given:
    # What a stream is read with; see read_stream.
    source: Source
    limits: Limits
    borrowed: Description | Dump | None
    page_size: int | None

    def layouts(self, known: Layouts) -> Layouts:
        return known if self.page_size is None else replace(known, page_size=self.page_size)


def _attempts(given: _Given, walk: Walk, unparsed: list[StreamError]) -> Iterator[Walker | None]:
    # Ways to read a stream, the best first; None for one that does not apply.
    # A description that cannot be parsed is noted in ``unparsed``.
    source, limits = given.source, given.limits
    tail = find_description(source, limits)
    if tail is not None:
        description = _parsed(tail, limits, unparsed)
        if description is not None:
            layouts = given.layouts(Layouts(LayoutOrigin.EMBEDDED, description))
            if walk is not Walk.LINEAR:
                yield _from_both_ends(source, limits, layouts, tail, walk)
            walker = _front_to_back(source, limits, layouts)
            if walker.description is None or walker.description.offset == tail.offset:
                yield walker
            # Else the description at the end is what an older stream in this place has left.
    plain = _front_to_back(source, limits, given.layouts(NO_LAYOUTS))
    if plain.description is not None and not unparsed:
        # The input does not end with the description, but has one.
        description = _parsed(plain.description, limits, unparsed)
        if description is not None:
            layouts = given.layouts(Layouts(LayoutOrigin.EMBEDDED, description))
            yield _front_to_back(source, limits, layouts)
    if given.borrowed is not None:
        yield _front_to_back(source, limits, given.layouts(borrowed_layouts(given.borrowed)))
    yield plain


def _shared_names(records: Iterable[Record]) -> frozenset[str]:
    counts = Counter(record.name or "" for record in records if record.kind is Kind.FULL)
    return frozenset(name for name, count in counts.items() if count > 1)


def _parsed(
    record: DescriptionRecord, limits: Limits, unparsed: list[StreamError]
) -> Description | None:
    try:
        return vmdesc.parse(record.text, record.payload, limits)
    except StreamError as error:
        unparsed.append(error)
        return None


def _source_problem(source: Source, damage: SourceError) -> StreamError:
    return Truncated(str(damage), offset=source.size(), hint=damage.hint)


def _front_to_back(source: Source, limits: Limits, layouts: Layouts) -> Walker:
    walker = Walker(source, limits, layouts)
    walker.header()
    recoveries = 0
    while True:
        try:
            _walk_to_end(walker)
        except Malformed as error:
            walker.problems.append(error)
            recoveries += 1
            if recoveries <= limits.recoveries and _recovered(walker):
                continue
        except StreamError as error:
            walker.problems.append(error)
        return walker


def _walk_to_end(walker: Walker) -> None:
    while not walker.ended:
        walker.step()
    if walker.next_type() == RecordType.VMDESCRIPTION:
        walker.step()
    _check_trailing_data(walker)


def _recovered(walker: Walker) -> bool:
    # After damage, continue where records plausibly begin again.
    if walker.ended:
        return False
    start = walker.reader.offset
    if walker.footers.absent:
        end = find_header(walker.source, start + 1)
    else:
        end = next_boundary(walker.source, start + 1)
    if end is None:
        return False
    walker.lose(start, end)
    last = walker.problems[-1]
    last.hint = f"{end - start} bytes lost; records continue at {end:#x}"
    return True


def _check_trailing_data(walker: Walker) -> None:
    # Containers pad with zeros.  Other data belongs to no stream: behind a description, which
    # shows where this one ends, it is what a longer one has left in a volume.  On a disk or in
    # a sparse file terabytes may follow, so only the first part is checked.
    reader = walker.reader
    most = reader.offset + _CHECKED
    while not reader.at_end() and reader.offset < most:
        block = reader.peek(1 << 16)
        if block.strip(b"\0"):
            if walker.layouts.origin is LayoutOrigin.EMBEDDED:
                walker.trailing = reader.offset
                return
            raise Malformed(
                "trailing data after the end of the stream",
                offset=reader.offset,
                expected="nothing, or zero padding",
                found=block[:16].hex(" "),
            )
        reader.offset += len(block)


def _from_both_ends(
    source: Source, limits: Limits, layouts: Layouts, tail: DescriptionRecord, walk: Walk
) -> Walker | None:
    # None if the chain of sections that the description leads to cannot be proved.
    description = layouts.description
    assert description is not None
    walker = Walker(source, limits, layouts)
    walker.header()
    refused = _walk_to_ram_data(walker)
    chain = _chain(walker, description, tail.offset - 1)
    if chain is None or chain[0] < walker.reader.offset:
        return None
    volume = tail.payload + len(tail.text) < source.size() or _of_proxmox(walker)
    requested = walk is Walk.RAM or volume
    if not _pass_ram_data(walker, chain[0], requested=requested, refused=refused):
        return None
    try:
        while not walker.ended:
            walker.step()
        if walker.reader.offset != tail.offset:
            return None
        walker.step()
        _check_trailing_data(walker)
    except StreamError:
        return None
    described = [(device.name, device.instance_id) for device in description.devices]
    found = [(r.name, r.instance_id) for r in walker.records if r.kind is Kind.FULL]
    return walker if found == described else None


def _chain(walker: Walker, description: Description, end: int) -> tuple[int, int] | None:
    # Where the device sections that end at ``end`` start, and how many of the described
    # ones come before.
    source = walker.source
    if description.devices:
        return find_chain(source, description, end, footers=not walker.footers.absent)
    # No devices: a section in parts, such as RAM, must end there.
    parts = [record.section_id or 0 for record in walker.records if record.kind is Kind.START]
    last = source.read_at(max(0, end - FOOTER_SIZE), FOOTER_SIZE)
    return (end, 0) if any(last == footer_bytes(number) for number in parts) else None


def _walk_to_ram_data(walker: Walker) -> bool:
    # True if the RAM layout is not supported.
    try:
        while walker.next_type() not in _RAM_DATA and not walker.ended:
            walker.step()
    except Unsupported as error:
        walker.problems.append(error)
        return True
    except StreamError:
        pass  # the linear walk meets it again and reports it
    return False


def _of_proxmox(walker: Walker) -> bool:
    # It writes the state into a volume, which may have the end of an older one; so may others,
    # but where a volume is larger than that end, padding follows.  Machine types may be
    # named such as pc-i440fx-9.0+pve0.
    if walker.configuration is not None and "+pve" in walker.configuration.machine:
        return True
    return any(record.name == "pbs-state" for record in walker.records)


def _pass_ram_data(walker: Walker, end: int, *, requested: bool, refused: bool) -> bool:
    # The RAM data up to ``end``: walked if it is small or requested, else skipped.
    small = end - walker.reader.offset <= walker.limits.ram_walk_bytes
    if not refused and (requested or small):
        try:
            while walker.reader.offset < end:
                if walker.ended:
                    return False
                walker.step()
        except Unsupported as error:
            walker.problems.append(error)
        except StreamError:
            return False
    if walker.reader.offset > end:
        return False
    if walker.reader.offset < end:
        walker.skip_to(end)
    return True
