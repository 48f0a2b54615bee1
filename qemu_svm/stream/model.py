"""A whole stream: the records, what they mean together, what is wrong.

:func:`read_stream` never raises for damage behind the file header: it returns
everything that came before, and the error in :attr:`Stream.problems`.

A stream that describes itself is read from both ends: forwards to the RAM
data, then the chain of device sections that the description at the end leads
to.  The RAM data between is stepped over as one record unless it is small or
asked for, so the time does not grow with the guest's memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
from qemu_svm.stream.reader import Reader
from qemu_svm.stream.records import Configuration, Kind, LayoutOrigin, RamBlock, RamPages, Record
from qemu_svm.stream.resync import FOOTER_SIZE, find_header, footer_bytes, next_boundary
from qemu_svm.stream.tail import Tail, find_chain, find_description
from qemu_svm.stream.vmstate import description as vmdesc
from qemu_svm.stream.vmstate.decode import decode
from qemu_svm.stream.vmstate.description import Description, Device
from qemu_svm.stream.vmstate.values import Value
from qemu_svm.stream.walk import Walker

if TYPE_CHECKING:
    from qemu_svm.stream.vmstate.dump import Dump

_LOOKED_AT = 64 * MIB  # of what is behind the end
_RAM_DATA = frozenset({RecordType.PART, RecordType.END})


class Walk(Enum):
    """How to read the records."""

    QUICK = "quick"
    """From both ends; step over large RAM data."""
    RAM = "ram"
    """From both ends, and every RAM record between."""
    LINEAR = "linear"
    """Front to back."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream as read.

    :param pages: page records by kind; None if RAM data was stepped over.
    :param described: description of a section by the offset of its record.
    :param description_source: origin of the layouts; never ``builtin``, which is per section.
    :param lent: the description or the dump that was borrowed for it.
    :param footers: sections end with their id (not those of 2.3 and older machine types).
    :param complete: the end of the stream was reached, nothing is cut off.
    """

    source: Source
    version: int
    configuration: Configuration | None
    records: tuple[Record, ...]
    blocks: tuple[RamBlock, ...]
    pages: RamPages | None
    page_size: int
    description: Description | None
    described: Mapping[int, Device]
    description_source: LayoutOrigin
    lent: Description | Dump | None
    problems: tuple[StreamError, ...]
    footers: bool
    complete: bool
    limits: Limits
    shared_names: frozenset[str]
    """Names that several device sections have."""

    def sections(self) -> Iterator[Record]:
        """Device sections, in stream order."""
        return (record for record in self.records if record.kind is Kind.FULL)

    def device(self, record: Record) -> Device | None:
        """Description of a device section."""
        return self.described.get(record.offset)

    def values(self, record: Record) -> Value | None:
        """Decode a section; None if nothing describes it.

        :raises StreamError: the section does not hold what is described.
        """
        if record.payload_size > self.limits.section_bytes:
            raise LimitExceeded(
                "the section is larger than the limit",
                offset=record.offset,
                section=record.name,
                expected=f"at most {self.limits.section_bytes} bytes",
                found=f"{record.payload_size}",
                hint="--limit section_bytes=NUMBER raises it",
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


def read_stream(
    source: Source,
    limits: Limits = DEFAULT,
    walk: Walk = Walk.QUICK,
    borrowed: Description | Dump | None = None,
) -> Stream:
    """Read a stream.

    :param borrowed: a description of another stream, or a dump, used if this one has none.
    :raises StreamError: ``source`` does not even start like a stream.
    """
    Walker(source, limits, None).header()
    problems: list[StreamError] = []
    tail = find_description(source, limits)
    description = _parse(tail.text, tail.payload, limits, problems) if tail else None
    origin, lent = LayoutOrigin.EMBEDDED, None
    walker = None
    if tail is not None and description is not None and walk is not Walk.LINEAR:
        walker = _from_both_ends(source, limits, description, tail, walk)
    if walker is None:
        walker = _front_to_back(source, limits, description)
        if description is None and walker.description_text is not None and not problems:
            # It was not the last thing in the input, but it is there.
            description = _parse(
                walker.description_text, walker.description_at or 0, limits, problems
            )
            if description is not None:
                walker = _front_to_back(source, limits, description)
        if description is None and borrowed is not None:
            lent = borrowed
            if isinstance(borrowed, Description):
                description, origin = borrowed, LayoutOrigin.BORROWED
                walker = _front_to_back(source, limits, borrowed, origin)
            else:
                origin = LayoutOrigin.DUMP
                walker = _front_to_back(source, limits, None, dump=borrowed)
    problems = walker.problems + problems
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
        page_size=(description.page_size if description else None) or walker.ram.page_size,
        description=description,
        described=walker.described,
        description_source=LayoutOrigin.NONE if description is None and lent is None else origin,
        lent=lent,
        problems=tuple(problems),
        footers=walker.footers is not False,
        complete=walker.ended and not any(isinstance(p, Truncated) for p in problems),
        limits=limits,
        shared_names=_shared_names(walker.records),
    )


def _shared_names(records: Iterable[Record]) -> frozenset[str]:
    counts = Counter(record.name or "" for record in records if record.kind is Kind.FULL)
    return frozenset(name for name, count in counts.items() if count > 1)


def _parse(
    text: bytes, offset: int, limits: Limits, problems: list[StreamError]
) -> Description | None:
    try:
        return vmdesc.parse(text, offset, limits)
    except StreamError as error:
        problems.append(error)
        return None


def _source_problem(source: Source, damage: SourceError) -> StreamError:
    return Truncated(str(damage), offset=source.size(), hint=damage.hint)


def _front_to_back(
    source: Source,
    limits: Limits,
    description: Description | None,
    origin: LayoutOrigin = LayoutOrigin.EMBEDDED,
    dump: Dump | None = None,
) -> Walker:
    walker = Walker(source, limits, description, origin, dump)
    walker.header()
    recoveries = 0
    while True:
        try:
            _to_the_end(walker)
        except Malformed as error:
            walker.problems.append(error)
            recoveries += 1
            if recoveries <= limits.recoveries and _recovered(walker):
                continue
        except StreamError as error:
            walker.problems.append(error)
        return walker


def _to_the_end(walker: Walker) -> None:
    while not walker.ended:
        walker.step()
    if walker.next_type() == RecordType.VMDESCRIPTION:
        walker.step()
    _nothing_behind(walker)


def _recovered(walker: Walker) -> bool:
    # Behind damage, go on where records plausibly begin again.
    if walker.ended:
        return False
    start = walker.reader.offset
    if walker.footers is False:
        end = find_header(walker.source, start + 1)
    else:
        end = next_boundary(walker.source, start + 1)
    if end is None:
        return False
    walker.lose(start, end)
    last = walker.problems[-1]
    last.hint = f"{end - start} bytes are lost; records go on at {end:#x}"
    return True


def _nothing_behind(walker: Walker) -> None:
    # Containers pad with zeros; anything else does not belong here.  A disk, or a
    # file that is one hole, may go on for terabytes: nobody looks so far.
    reader = walker.reader
    most = reader.offset + _LOOKED_AT
    while not reader.at_end() and reader.offset < most:
        block = reader.peek(1 << 16)
        if block.strip(b"\0"):
            raise Malformed(
                "data behind the end of the stream",
                offset=reader.offset,
                expected="nothing, or zero padding",
                found=block[:16].hex(" "),
            )
        reader.offset += len(block)


def _from_both_ends(
    source: Source, limits: Limits, description: Description, tail: Tail, walk: Walk
) -> Walker | None:
    # None where the claim of the tail cannot be proved.
    walker = Walker(source, limits, description)
    walker.header()
    refused = _front(walker)
    chain = _chain(walker, description, tail.offset - 1)
    if chain is None or chain[0] < walker.reader.offset:
        return None
    if not _between(walker, chain[0], walk, refused):
        return None
    try:
        while not walker.ended:
            walker.step()
        if walker.reader.offset != tail.offset:
            return None
        walker.step()
        _nothing_behind(walker)
    except StreamError:
        return None
    described = [(device.name, device.instance_id) for device in description.devices]
    found = [(r.name, r.instance_id) for r in walker.records if r.kind is Kind.FULL]
    return walker if found == described else None


def _chain(walker: Walker, description: Description, end: int) -> tuple[int, int] | None:
    # Where the device sections start that end at ``end``, and how many come before.
    source = walker.source
    if description.devices:
        return find_chain(source, description, end, footers=walker.footers is not False)
    # There are none: a section in parts, such as RAM, has to end there.
    parts = [record.section_id or 0 for record in walker.records if record.kind is Kind.START]
    last = source.read_at(max(0, end - FOOTER_SIZE), FOOTER_SIZE)
    return (end, 0) if any(last == footer_bytes(number) for number in parts) else None


def _front(walker: Walker) -> bool:
    # Records up to the RAM data; True if a RAM layout was refused.
    try:
        while walker.next_type() not in _RAM_DATA and not walker.ended:
            walker.step()
    except Unsupported as error:
        walker.problems.append(error)
        return True
    except StreamError:
        pass  # met again, and then reported, by the linear walk
    return False


def _between(walker: Walker, end: int, walk: Walk, refused: bool) -> bool:  # noqa: FBT001
    # The RAM data: walked if it is small or asked for, else stepped over.
    small = end - walker.reader.offset <= walker.limits.ram_walk_bytes
    if not refused and (walk is Walk.RAM or small):
        try:
            while walker.reader.offset < end:
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
