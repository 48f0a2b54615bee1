"""The RAM of a stream: where each page is, and its content.

:func:`read_ram` reads all RAM records once, and with them multifd channels in
the order in which the destination would apply them.  :class:`Ram` then returns
any page: the last copy wins, and a delta is applied to the copy before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from qemu_svm.errors import Malformed, PathError, StreamError, Truncated
from qemu_svm.source.base import Source
from qemu_svm.stream.constants import RamFlag
from qemu_svm.stream.model import Stream
from qemu_svm.stream.ram.blocks import BlockEntry
from qemu_svm.stream.ram.final import Copy, Final, final_of
from qemu_svm.stream.ram.problems import channel_problems, extra_problems, is_postcopy
from qemu_svm.stream.ram.records import RamState
from qemu_svm.stream.ram.runs import NOWHERE, PageKind, Place, RamRuns, page_counts, unpack
from qemu_svm.stream.ram.scan import Scanner, scan
from qemu_svm.stream.ram.xbzrle import apply_delta
from qemu_svm.stream.records import Kind, LayoutOrigin, RamBlock, RamPages
from qemu_svm.stream.walk import Walker

if TYPE_CHECKING:
    from qemu_svm.stream.ram.multifd import Channel, Packet
    from qemu_svm.stream.ram.postcopy import Extra


@dataclass(frozen=True, slots=True)
class Ram:
    """All RAM of a stream; a context manager.

    :param entries: the block list with what capabilities add to it.
    :param runs: every copy of every page, in the order of sending.
    :param inputs: the stream, then the channels, then further connections of
        postcopy: indexed by :attr:`Place.input`.
    :param flushes: number of MULTIFD_FLUSH records.
    :param problems: errors met while reading.
    :param extras: further connections of postcopy.
    """

    entries: tuple[BlockEntry, ...]
    runs: RamRuns
    page_size: int
    inputs: tuple[Source, ...]
    channels: tuple[Channel, ...]
    flushes: int
    problems: tuple[StreamError, ...]
    extras: tuple[Extra, ...] = ()
    _finals: dict[int, Final] = field(default_factory=dict, repr=False, compare=False)

    def close(self) -> None:
        """Close the temporary files of compressed channels.

        The stream and the channels stay open: who opened them closes them.
        """
        for channel in self.channels:
            channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def resumed(self) -> bool:
        """Whether a further connection has the end that the stream itself lacks."""
        return any(extra.ended for extra in self.extras)

    @property
    def blocks(self) -> tuple[RamBlock, ...]:
        """RAM blocks; the other methods refer to a block by its index here."""
        return tuple(entry.block for entry in self.entries)

    def block(self, name: str) -> int:
        """Return the index of a block.

        :raises PathError: there is none of that name.
        """
        names = [block.name for block in self.blocks]
        if name not in names:
            from difflib import get_close_matches

            raise PathError(
                f"no RAM block '{name}'", near=get_close_matches(name, names) or names[:8]
            )
        return names.index(name)

    def pages_of(self, block: int) -> int:
        """Number of pages of a block."""
        return -(-self.entries[block].block.used_length // self.page_size)

    @property
    def page_count(self) -> int:
        """Number of pages of all blocks."""
        return sum(map(self.pages_of, range(len(self.entries))))

    def counts(self) -> RamPages:
        """Pages sent by kind; each copy counts."""
        return page_counts(self.runs.sums)

    def final(self, block: int) -> Final:
        """Return the last copies of the pages of a block; made when first asked for."""
        found = self._finals.get(block)
        if found is None:
            found = self._finals[block] = final_of(self.runs, block)
        return found

    def was_sent(self, block: int, page: int) -> bool:
        """Whether the stream contains a copy of a page."""
        return self.final(block).copy(page) is not None

    def read_page(self, block: int, page: int) -> bytes:
        """Return the content of a page at the end; zeros if it was never sent.

        :raises StreamError: the page's data in the stream is damaged.
        """
        copy = self.final(block).copy(page)
        if copy is None:
            return bytes(self.page_size)
        return self.page_of(block, page, copy)

    def page_of(self, block: int, page: int, copy: Copy) -> bytes:
        """Return the content of a page whose last copy is known.

        :raises StreamError: the page's data in the stream is damaged.
        """
        kind, data = copy
        if kind != PageKind.XBZRLE:
            return self.content(PageKind(kind), unpack(data))
        whole, deltas = self.final(block).before(page)
        result = bytearray(self.page_size)
        if whole is not None:
            result[:] = self.content(PageKind(whole[0]), unpack(whole[1]))
        for delta in deltas:
            self.apply(result, unpack(delta))
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

    def content(self, kind: PageKind, place: Place) -> bytes:
        """Return one copy of a page, of any kind but XBZRLE.

        :raises StreamError: it is damaged.
        """
        if kind in (PageKind.ZERO, PageKind.ABSENT):
            return bytes(self.page_size)
        if kind is PageKind.FILLED:
            return self.read_at(place, 1) * self.page_size
        if kind is PageKind.COMPRESSED:
            size = int.from_bytes(self.read_at(place, 4), "big")
            return self._inflated(self.read_at(place.plus(4), size), place.offset)
        return self.read_at(place, self.page_size)

    def apply(self, page: bytearray, place: Place) -> None:
        """Apply one XBZRLE copy to ``page``.

        :raises StreamError: it is damaged.
        """
        size = int.from_bytes(self.read_at(place.plus(1), 2), "big")
        delta = place.plus(3)
        apply_delta(page, self.read_at(delta, size), delta.offset)

    def read_at(self, place: Place, size: int) -> bytes:
        """Return bytes of one of :attr:`inputs`.

        :raises Truncated: there are fewer.
        """
        found = self.inputs[place.input].read_at(place.offset, size)
        if len(found) < size:
            raise Truncated(
                "the input ends inside a RAM page",
                offset=place.offset + len(found),
                section="ram",
                expected=f"{size} bytes",
                found=f"{len(found)}",
            )
        return found

    def _inflated(self, data: bytes, offset: int) -> bytes:
        inflate = zlib.decompressobj()
        try:
            page = inflate.decompress(data, self.page_size + 1)
            problem = "" if inflate.eof else "no end of the zlib stream"
        except zlib.error as error:
            page, problem = b"", str(error)
        if problem or len(page) != self.page_size:
            raise Malformed(
                "damaged compressed page",
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
    :raises StreamError: a channel is not one.
    """
    if stream.laid is not None:
        from qemu_svm.stream.ram.laid import laid_ram

        return laid_ram(stream.source, stream.blocks, stream.laid, stream.page_size)
    if stream.description_source is LayoutOrigin.KVM:  # registers, and no memory
        runs = RamRuns(stream.page_size)
        return Ram((), runs, stream.page_size, (stream.source,), (), 0, ())
    with ExitStack() as owned:
        # Closed by the returned object, or here if anything fails.
        read, others = _channels(stream, channels, owned)
        runs = RamRuns(stream.page_size)
        state = RamState(
            page_size=stream.page_size, page_size_from=stream.page_size_from, runs=runs, scan=scan
        )
        merge = _Merge(state, runs, read)
        state.mark = merge.mark
        walker = Walker(stream.source, stream.limits, stream.layouts, ram=state)
        problems = []
        for channel in read:
            if channel.problem is not None:
                channel.problem.path = channel.source.path
                problems.append(channel.problem)
        discards = None
        if others or is_postcopy(stream):
            from qemu_svm.stream.ram.postcopy import Discards

            discards = Discards(stream.source)
        try:
            walker.header()
            for record in walker.steps():
                if discards is not None and record.kind is Kind.COMMAND:
                    discards.note(record, state)
                if record.kind is Kind.END and record.name == "ram":
                    break
            merge.rest()
        except StreamError as error:
            problems.append(error)
        if not problems:
            problems += channel_problems(stream, state, read, merge.marks, merge.flushes)
        extras = _further(walker, others, 1 + len(read))
        problems += extra_problems(extras)
        missing = discards.missing(state, stream.source.size()) if discards is not None else None
        if missing is not None:
            problems.append(missing)
        owned.pop_all()
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


def _channels(
    stream: Stream, sources: Sequence[Source], owned: ExitStack
) -> tuple[list[Channel], list[Source]]:
    # The multifd channels by their numbers, and other connections in the given order.
    if not sources:
        return [], []
    from qemu_svm.stream.ram.multifd import is_channel, read_channel

    others = [source for source in sources if not is_channel(source)]
    for source in others:
        if not source.size() and not is_postcopy(stream):
            raise Malformed(f"'{source.path}' is empty", offset=0, expected="a multifd channel")
    read: list[Channel] = []
    for source in sources:
        if source not in others:
            read.append(read_channel(source, stream.page_size, stream.limits))
            owned.callback(read[-1].close)
    return sorted(read, key=lambda channel: channel.number), others


def _further(walker: Walker, sources: Sequence[Source], number: int) -> list[Extra]:
    if not sources:
        return []
    from qemu_svm.stream.ram.postcopy import read_extra

    return [read_extra(walker, source, at) for at, source in enumerate(sources, number)]


class _Merge:
    # Inserts the pages of the channels where the main stream waits for them.
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
        # section shows which, because its EOS is last.
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
        if block in self._runs.mapped:
            raise Malformed(
                "multifd page in a stream of mapped-ram",
                offset=next(packet.pages).data or 0,
                section=f"multifd channel {source - 1}",
                expected="no channels: the pages are where the block list says",
            )
        for pages in packet.pages:
            end = (pages.page + pages.count) * self._state.page_size
            if block is None or end > self._state.tops[block]:
                raise Malformed(
                    "multifd page outside the RAM blocks",
                    offset=pages.data or 0,
                    section=f"multifd channel {source - 1}",
                    expected="a page of the block list",
                    found=f"{pages.page * self._state.page_size:#x} in {packet.block!r}",
                )
            if pages.data is None:
                self._runs.add(block, pages.page, pages.count, PageKind.ABSENT, NOWHERE)
            else:
                place = Place(source, pages.data)
                self._runs.add(block, pages.page, pages.count, PageKind.PLACED, place)
