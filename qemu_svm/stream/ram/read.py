"""The RAM of a stream: where each page is, and what it holds.

:func:`read_ram` reads all RAM records once, and with them multifd channels in
the order in which the destination would apply them.  :class:`Ram` then gives
any page: the last copy wins, and a difference is applied to what was before.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qemu_svm.errors import Malformed, PathError, StreamError, Truncated
from qemu_svm.source.base import Source
from qemu_svm.stream.constants import RamFlag, RecordType
from qemu_svm.stream.model import Stream
from qemu_svm.stream.ram.blocks import BlockEntry
from qemu_svm.stream.ram.records import RamState
from qemu_svm.stream.ram.runs import INPUT_SHIFT, PageKind, RamRuns
from qemu_svm.stream.ram.scan import Scanner, scan
from qemu_svm.stream.ram.xbzrle import apply_delta
from qemu_svm.stream.records import Kind, RamBlock, RamPages
from qemu_svm.stream.resync import footer_bytes
from qemu_svm.stream.walk import Walker

if TYPE_CHECKING:
    from qemu_svm.stream.ram.multifd import Channel, Packet
    from qemu_svm.stream.ram.postcopy import Discards, Extra

_BATCH = 1024  # records of the walk that are kept before they are forgotten


@dataclass(frozen=True, slots=True)
class Ram:
    """All RAM of a stream.

    :param entries: the block list with what capabilities add to it.
    :param runs: every copy of every page, in the order of sending.
    :param sources: the stream, then the channels.
    :param flushes: number of MULTIFD_FLUSH records.
    :param problems: what went wrong while reading.
    :param extras: further connections of postcopy; their inputs follow the channels'.
    """

    entries: tuple[BlockEntry, ...]
    runs: RamRuns
    page_size: int
    sources: tuple[Source, ...]
    channels: tuple[Channel, ...]
    flushes: int
    problems: tuple[StreamError, ...]
    extras: tuple[Extra, ...] = ()

    def close(self) -> None:
        """Close the inputs of the channels; the stream's own and those given stay open."""
        for channel in self.channels:
            channel.source.close()

    @property
    def resumed(self) -> bool:
        """Whether a further connection brought the end that the stream itself lacks."""
        return bool(self.extras) and any(extra.ended for extra in self.extras)

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """RAM blocks; their index is what the other methods take."""
        return tuple(entry.block for entry in self.entries)

    def block(self, name: str) -> int:
        """Index of a block.

        :raises PathError: there is none of that name.
        """
        names = [block.name for block in self.blocks]
        if name not in names:
            from difflib import get_close_matches

            raise PathError(f"no RAM block '{name}'", near=get_close_matches(name, names))
        return names.index(name)

    def pages_of(self, block: int) -> int:
        """Number of pages of a block."""
        return -(-self.entries[block].block.used_length // self.page_size)

    def counts(self) -> RamPages:
        """Pages sent by kind; each copy counts."""
        sums = self.runs.sums
        return RamPages(
            sums[PageKind.PAGE] + sums[PageKind.PLACED],
            sums[PageKind.ZERO] + sums[PageKind.ABSENT] + sums[PageKind.FILLED],
            sums[PageKind.XBZRLE],
            sums[PageKind.COMPRESSED],
        )

    def was_sent(self, block: int, page: int) -> bool:
        """Whether the stream has any copy of a page."""
        return next(iter(self.runs.history(block, page)), None) is not None

    def read_page(self, block: int, page: int) -> bytes:
        """Return what a page holds at the end; zeros if it was never sent.

        :raises StreamError: what the stream has for it is damaged.
        """
        deltas = []
        content = bytes(self.page_size)
        for kind, source, data in self.runs.history(block, page):
            if kind is PageKind.XBZRLE:
                deltas.append((source, data))
                continue
            content = self.content(kind, source, data)
            break
        if not deltas:
            return content
        result = bytearray(content)
        for source, data in reversed(deltas):
            self.apply(result, source, data)
        return bytes(result)

    def read(self, block: int, offset: int, size: int) -> bytes:
        """Return ``size`` bytes at ``offset`` of a block (fewer at its end)."""
        size = min(size, self.entries[block].block.used_length - offset)
        if size <= 0 or offset < 0:
            return b""
        first, last = offset // self.page_size, (offset + size - 1) // self.page_size
        pages = b"".join(self.read_page(block, page) for page in range(first, last + 1))
        start = offset - first * self.page_size
        return pages[start : start + size]

    def content(self, kind: PageKind, source: int, data: int) -> bytes:
        """Return one copy of a page, of any kind but XBZRLE."""
        if kind in (PageKind.ZERO, PageKind.ABSENT):
            return bytes(self.page_size)
        if kind is PageKind.FILLED:
            return self.read_input(source, data, 1) * self.page_size
        if kind is PageKind.COMPRESSED:
            size = int.from_bytes(self.read_input(source, data, 4), "big")
            return self._inflated(self.read_input(source, data + 4, size), data)
        return self.read_input(source, data, self.page_size)

    def apply(self, page: bytearray, source: int, data: int) -> None:
        """Apply one XBZRLE copy to ``page``."""
        size = int.from_bytes(self.read_input(source, data + 1, 2), "big")
        apply_delta(page, self.read_input(source, data + 3, size), data + 3)

    def read_input(self, source: int, offset: int, size: int) -> bytes:
        """Return bytes of one of :attr:`sources`.

        :raises Truncated: there are fewer.
        """
        found = self.sources[source].read_at(offset, size)
        if len(found) < size:
            raise Truncated(
                "the input ends inside a RAM page",
                offset=offset + len(found),
                section="ram",
                expected=f"{size} bytes",
                found=f"{len(found)}",
            )
        return found

    def _inflated(self, data: bytes, offset: int) -> bytes:
        inflate = zlib.decompressobj()
        try:
            page = inflate.decompress(data, self.page_size + 1)
            problem = "" if inflate.eof else "it does not end"
        except zlib.error as error:
            page, problem = b"", str(error)
        if problem or len(page) != self.page_size:
            raise Malformed(
                "a compressed page is damaged",
                offset=offset,
                section="ram",
                expected=f"{self.page_size} bytes",
                found=problem or f"{len(page)}",
            )
        return page


def read_ram(stream: Stream, channels: Sequence[Source] = (), *, scan: Scanner = scan) -> Ram:
    """Read all RAM records of a stream.

    :param channels: the multifd channels, in any order; further connections of
        postcopy in the order in which they were made.
    :param scan: how common records are read.
    :raises StreamError: a channel does not start like one.
    """
    read, others = _channels(stream, channels)
    walker = Walker(stream.source, stream.limits, stream.layouts)
    state = walker.ram
    state.page_size = stream.page_size
    state.scan = scan
    runs = state.runs = RamRuns(stream.page_size)
    merge = _Merge(state, runs, read)
    state.mark = merge.mark
    problems = [channel.problem for channel in read if channel.problem is not None]
    discards = None
    if others or _is_postcopy(stream):
        from qemu_svm.stream.ram.postcopy import Discards

        discards = Discards(stream.source)
    try:
        _walk(walker, discards)
        merge.rest()
    except StreamError as error:
        problems.append(error)
    if not problems:
        problems += _channel_problems(stream, state, merge, read)
    extras = _further(walker, others, 1 + len(read))
    problems += _problems_of(extras)
    missing = discards.missing(state, stream.source.size()) if discards is not None else None
    if missing is not None:
        problems.append(missing)
    return Ram(
        state.entries,
        runs,
        stream.page_size,
        (stream.source, *(channel.source for channel in read), *others),
        tuple(read),
        merge.flushes,
        tuple(problems),
        tuple(extras),
    )


def _channel_problems(
    stream: Stream, state: RamState, merge: _Merge, channels: list[Channel]
) -> Iterator[StreamError]:
    # Of channels that are missing, or are those of another stream.
    if channels and stream.complete:
        from qemu_svm.stream.ram.multifd_set import disagreements

        yield from disagreements(channels, merge.marks, stream.source.size())
    elif not channels and (merge.flushes or (stream.complete and _without_content(state))):
        from qemu_svm.stream.ram.multifd_set import channels_wanted

        yield channels_wanted(stream.source.size())


def _without_content(state: RamState) -> bool:
    # Before 8.1 nothing else tells that pages went over channels: zero pages only, and
    # not all that there are.
    assert state.runs is not None
    pages = sum(-(-block.used_length // state.page_size) for block in state.blocks)
    zero = state.runs.sums[PageKind.ZERO]
    return not (state.shared or state.mapped) and 0 < zero == state.runs.records < pages


def _channels(stream: Stream, sources: Sequence[Source]) -> tuple[list[Channel], list[Source]]:
    # The multifd channels by their numbers, and other connections as they were given.
    if not sources:
        return [], []
    from qemu_svm.stream.ram.multifd import is_channel, read_channel

    others = [source for source in sources if not is_channel(source)]
    for source in others:
        if not source.size() and not _is_postcopy(stream):
            raise Malformed(f"'{source.path}' is empty", offset=0, expected="a multifd channel")
    read = [
        read_channel(source, stream.page_size, stream.limits)
        for source in sources
        if source not in others
    ]
    return sorted(read, key=lambda channel: channel.number), others


def _further(walker: Walker, sources: Sequence[Source], number: int) -> list[Extra]:
    if not sources:
        return []
    from qemu_svm.stream.ram.postcopy import read_extra

    return [read_extra(walker, source, at) for at, source in enumerate(sources, number)]


def _problems_of(extras: list[Extra]) -> list[StreamError]:
    if not extras:
        return []
    from qemu_svm.stream.ram.postcopy import broke_off

    return [
        extra.problem
        for at, extra in enumerate(extras)
        if extra.problem is not None and not broke_off(extras, at)
    ]


def is_complete(stream: Stream, ram: Ram) -> bool:
    """Whether stream and channels were read to their ends without damage."""
    return (stream.complete or ram.resumed) and not all_problems(stream, ram)


def all_problems(stream: Stream, ram: Ram) -> tuple[StreamError, ...]:
    """What is wrong with the stream or its RAM; what both met, once."""
    ours = stream.problems
    more = ram.problems
    if ram.resumed:
        # That the first connection broke off is what the others are there for.
        ours, more = (
            tuple(problem for problem in part if not _broken_off(stream, problem))
            for part in (ours, more)
        )
    seen = {(problem.offset, problem.what) for problem in ours}
    return (*ours, *(one for one in more if (one.offset, one.what) not in seen))


def _is_postcopy(stream: Stream) -> bool:
    return any(
        record.kind is Kind.COMMAND and (record.name or "").startswith("POSTCOPY")
        for record in stream.records
    )


def _broken_off(stream: Stream, problem: StreamError) -> bool:
    return isinstance(problem, Truncated) and problem.offset == stream.source.size()


def _walk(walker: Walker, discards: Discards | None) -> None:
    # Record by record up to the end of RAM.
    walker.header()
    empty = b""
    while not walker.ended and walker.next_type() is not None:
        if empty:
            # A guest that waits sends very many PARTs with nothing in them.
            while walker.reader.peek(len(empty)) == empty:
                walker.reader.offset += len(empty)
                walker.ram.mark(RamFlag.EOS)
        walker.step()
        if len(walker.records) > _BATCH:
            del walker.records[:-1]
        record = walker.records[-1]
        if discards is not None and record.kind is Kind.COMMAND:
            discards.note(record, walker.ram)
        if record.name == "ram" and record.section_id is not None:
            if record.kind is Kind.END:
                return
            if record.kind is Kind.START:
                number = record.section_id.to_bytes(4, "big")
                eos = int(RamFlag.EOS).to_bytes(8, "big")
                foot = b"" if walker.footers.absent else footer_bytes(record.section_id)
                empty = bytes((RecordType.PART,)) + number + eos + foot


class _Merge:
    # Puts the pages of the channels where the main stream waits for them.
    def __init__(self, state: RamState, runs: RamRuns, channels: list[Channel]) -> None:
        self.flushes = 0
        self._state = state
        self._runs = runs
        self.marks = 0
        self._waiting: list[tuple[int, int, int, Packet]] = sorted(
            (
                (packet.epoch, packet.number, source, packet)
                for source, channel in enumerate(channels, 1)
                for packet in channel.packets
            ),
            key=lambda entry: entry[:3],
            reverse=True,
        )

    def mark(self, flag: RamFlag) -> None:
        # Before 8.1 every EOS is a mark, later every MULTIFD_FLUSH; the first
        # section shows which, because its EOS comes last.
        if flag is RamFlag.HOOK:
            return
        if flag is RamFlag.MULTIFD_FLUSH:
            self.flushes += 1
        elif self.flushes:
            return
        self._upto(self.marks)
        self.marks += 1

    def rest(self) -> None:
        self._upto(None)

    def _upto(self, epoch: int | None) -> None:
        waiting = self._waiting
        while waiting and (epoch is None or waiting[-1][0] <= epoch):
            _, _, source, packet = waiting.pop()
            self._apply(source, packet)

    def _apply(self, source: int, packet: Packet) -> None:
        block = self._state.index.get(packet.block)
        for pages in packet.pages:
            end = (pages.page + pages.count) * self._state.page_size
            if block is None or end > self._state.tops[block]:
                raise Malformed(
                    "a multifd page that no RAM block has",
                    offset=pages.data or 0,
                    section=f"multifd channel {source - 1}",
                    expected="a page of the block list",
                    found=f"{pages.page * self._state.page_size:#x} in {packet.block!r}",
                )
            if pages.data is None:
                self._runs.add(block, pages.page, pages.count, PageKind.ABSENT, 0)
            else:
                data = source << INPUT_SHIFT | pages.data
                self._runs.add(block, pages.page, pages.count, PageKind.PLACED, data)
