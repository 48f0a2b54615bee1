"""What postcopy sends besides the main stream.

With postcopy-preempt, pages that the destination asks for come over a second
connection: RAM records and nothing around them.  After a network failure the
migration goes on over a new connection, which has commands and sections but no
header, and no START: those came over the first.

Both bring pages for the last time: what was sent before was discarded.

Source: QEMU ``migration/ram.c`` (``ram_save_host_page_urgent``,
``ram_load_postcopy``), ``migration/migration.c`` (``postcopy_do_resume``), 7.2
and 10.2.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from qemu_svm.errors import Malformed, StreamError, Truncated
from qemu_svm.source.base import Source
from qemu_svm.stream.commands import discarded
from qemu_svm.stream.constants import MAGIC, Command, RamFlag
from qemu_svm.stream.ram import records as ram
from qemu_svm.stream.ram.records import RamState
from qemu_svm.stream.ram.runs import INPUT_SHIFT
from qemu_svm.stream.reader import Reader
from qemu_svm.stream.recognise import RESUMED, seen_elsewhere
from qemu_svm.stream.records import Record
from qemu_svm.stream.walk import Walker

_OFFSET = (1 << INPUT_SHIFT) - 1
_HEX = re.compile("0x[0-9a-f]+")
_FLAGS = 0x3FF
_EOS = int(RamFlag.EOS).to_bytes(8, "big")


class Discards:
    """Pages that the destination was told to forget, because they are sent again.

    :param source: the main stream.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._ranges: list[tuple[int, int, int, int]] = []

    def note(self, record: Record, state: RamState) -> None:
        """Take down what a command discards."""
        if record.name != Command.POSTCOPY_RAM_DISCARD.name or state.runs is None:
            return
        payload = self._source.read_at(record.payload, record.payload_size)
        name, ranges = discarded(payload)
        block = state.index.get(name)
        before = state.runs.seal()
        if block is not None:
            pages = -(-state.blocks[block].used_length // state.page_size)
            for start, length in ranges:
                first, end = start // state.page_size, (start + length) // state.page_size
                if first < min(end, pages):
                    self._ranges.append((before, block, first, min(end, pages)))

    def missing(self, state: RamState, end: int) -> StreamError | None:
        """The error for pages that were not sent again.

        :param end: of the main stream.
        """
        if not self._ranges or state.runs is None:
            return None
        wanted: dict[int, bytearray] = {}
        for _, block, first, last in self._ranges:
            pages = -(-state.blocks[block].used_length // state.page_size)
            wanted.setdefault(block, bytearray(pages))[first:last] = b"\1" * (last - first)
        for block, page, count, _, _ in islice(state.runs.raw(), self._ranges[-1][0], None):
            if block in wanted:
                wanted[block][page : page + count] = bytes(count)
        left = sum(part.count(1) for part in wanted.values())
        if not left:
            return None
        return Truncated(
            f"{left} pages that postcopy discarded were not sent again",
            offset=end,
            section="ram",
            hint="they may have come over a further connection: name its file with --channel",
        )


@dataclass(frozen=True, slots=True)
class Extra:
    """One further connection.

    :param kind: ``preempt`` or ``resumed``.
    :param pages: page records in it.
    :param ended: a resumed stream was read to its EOF.
    """

    source: Source
    kind: str
    pages: int = 0
    ended: bool = False
    problem: StreamError | None = None


def kind_of(source: Source) -> str:
    """Tell ``preempt`` from ``resumed``.

    :raises Malformed: it is neither.
    """
    head = source.read_at(0, 16)
    if head.startswith(RESUMED):
        return "resumed"
    flags = int.from_bytes(head[:8], "big") & _FLAGS
    known = len(head) < 8 or flags in (RamFlag.EOS, RamFlag.PAGE, RamFlag.ZERO)
    if known and not any(head[:2]):
        return "preempt"
    what = "a stream of its own" if head.startswith(MAGIC) else seen_elsewhere(head)
    raise Malformed(
        f"'{source.path}' is no channel" + (f" but {what}" if what else ""),
        offset=0,
        expected="a multifd channel, or a further connection of postcopy",
        found=head[:8].hex(" ") or "nothing",
    )


def read_extra(main: Walker, source: Source, number: int) -> Extra:
    """Read a further connection into the RAM of the main stream.

    :param main: the walker of the main stream, behind all of it.
    :param number: of the input; see :class:`~qemu_svm.stream.ram.runs.RamRuns`.
    :raises StreamError: ``source`` is something else.
    """
    kind = kind_of(source)
    # Nothing but the end of the connection need mark the end of the records.
    shifted = _Shifted(source, number, _EOS if kind == "preempt" else b"")
    state = main.ram
    before = state.runs.records if state.runs is not None else 0
    state.current = -1
    problem, ended = None, False
    try:
        if kind == "preempt":
            _records(shifted, state)
        else:
            walker = main.continued_in(shifted, shifted.start)
            while not walker.ended and walker.next_type() is not None:
                walker.step()
                del walker.records[:-1]
            ended = walker.ended
            if not ended:
                raise Truncated("the resumed stream has no end", offset=shifted.end)
    except StreamError as error:
        error.offset = min(error.offset, shifted.end)
        error.section = f"connection {number} ({kind})"
        problem = _unshifted(error, number)
    pages = state.runs.records - before if state.runs is not None else 0
    return Extra(source, kind, pages, ended, problem)


def broke_off(extras: Sequence[Extra], number: int) -> bool:
    """Whether a connection only ends too early, and a later one takes up from there."""
    later = any(extra.kind == "resumed" for extra in extras[number + 1 :])
    return later and isinstance(extras[number].problem, Truncated)


def _unshifted(error: StreamError, number: int) -> StreamError:
    # Offsets, also those in words, as they are in the connection itself.
    def own(found: re.Match[str]) -> str:
        offset = int(found[0], 16)
        return hex(offset & _OFFSET) if offset >> INPUT_SHIFT == number else found[0]

    error.offset &= _OFFSET
    for name in ("what", "expected", "found", "hint"):
        text = getattr(error, name)
        if text is not None:
            setattr(error, name, _HEX.sub(own, text))
    return error


def _records(source: _Shifted, state: RamState) -> None:
    reader = Reader(source, source.start)
    try:
        while reader.offset < source.end:
            ram.step_over(reader, state)
    except Malformed as error:
        if reader.offset <= source.end:
            raise
        raise reader.truncated("a RAM record", 0, 0) from error


class _Shifted(Source):
    # A source whose offsets bear its number, as those of runs do.
    def __init__(self, source: Source, number: int, tail: bytes = b"") -> None:
        self.path = source.path
        self.start = number << INPUT_SHIFT
        self.end = self.start + source.size()
        self._source = source
        self._tail = tail

    def read_at(self, offset: int, size: int) -> bytes:
        data = self._source.read_at(offset - self.start, size)
        if self._tail and len(data) < size:
            behind = max(0, offset - self.end)
            data += self._tail[behind : behind + size - len(data)]
        return data

    def size(self) -> int:
        return self.end + len(self._tail)

    def close(self) -> None:
        pass  # whoever opened the source closes it
