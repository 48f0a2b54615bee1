"""Further connections of postcopy, and pages that it discards.

With postcopy-preempt, pages that the destination requests are sent over a second
connection: RAM records without sections.  After a network failure the migration
continues over a new connection, which has commands and sections but no file header and
no START: those were sent over the first.

Pages on both are final: earlier copies were discarded.

Source: QEMU ``migration/ram.c`` (``ram_save_host_page_urgent``,
``ram_load_postcopy``), ``migration/migration.c`` (``postcopy_do_resume``), 7.2
and 10.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qemu_svm.errors import Malformed, StreamError, Truncated
from qemu_svm.source.base import Source
from qemu_svm.stream.commands import discarded
from qemu_svm.stream.constants import MAGIC, Command, RamFlag
from qemu_svm.stream.ram import records as ram
from qemu_svm.stream.ram.final import FinalRuns
from qemu_svm.stream.ram.records import RamState
from qemu_svm.stream.reader import Reader
from qemu_svm.stream.recognise import RESUMED, seen_elsewhere
from qemu_svm.stream.records import Record
from qemu_svm.stream.walk import Walker

_FLAGS = 0x3FF


class Discards:
    """Pages that the destination discards, because they are sent again.

    :param source: the main stream.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._ranges: list[tuple[int, int, int, int]] = []

    def note(self, record: Record, state: RamState) -> None:
        """Note the pages that a command discards."""
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
        """Return the error for discarded pages that were not sent again, if there are any.

        :param end: offset of the end of the main stream.
        """
        if not self._ranges or state.runs is None:
            return None
        since, left = self._ranges[-1][0], 0
        finals: dict[int, FinalRuns] = {}
        for block, first, last in _joined(self._ranges):
            final = finals.get(block)
            if final is None:
                final = finals[block] = FinalRuns(state.runs, block, since)
            left += last - first - final.tally(first, last).sent
        if not left:
            return None
        return Truncated(
            f"{left} pages that postcopy discarded were not sent again",
            offset=end,
            section="ram",
            hint="they may have been sent over a further connection: pass its file with --channel",
        )


def _joined(ranges: Iterable[tuple[int, int, int, int]]) -> Iterator[tuple[int, int, int]]:
    # The pages of ranges, each page once, as ``(block, first, end)``.
    ordered = sorted(one[1:] for one in ranges)
    block, first, end = ordered[0]
    for number, start, stop in ordered:
        if number == block and start <= end:
            end = max(end, stop)
            continue
        yield block, first, end
        block, first, end = number, start, stop
    yield block, first, end


@dataclass(frozen=True, slots=True)
class Extra:
    """One further connection.

    :param kind: ``preempt`` or ``resumed``.
    :param pages: page records in it.
    :param ended: a resumed stream was read to its EOF record.
    """

    source: Source
    kind: str
    pages: int = 0
    ended: bool = False
    problem: StreamError | None = None


def kind_of(source: Source) -> str:
    """Return the kind of a further connection, ``preempt`` or ``resumed``.

    :raises Malformed: it is neither.
    """
    head = source.read_at(0, 16)
    if head.startswith(RESUMED):
        return "resumed"
    flags = int.from_bytes(head[:8], "big") & _FLAGS
    known = len(head) < 8 or flags in (RamFlag.EOS, RamFlag.PAGE, RamFlag.ZERO)
    if known and not any(head[:2]):
        return "preempt"
    what = "a separate stream" if head.startswith(MAGIC) else seen_elsewhere(head)
    raise Malformed(
        f"'{source.path}' is not a channel" + (f", but {what}" if what else ""),
        offset=0,
        expected="a multifd channel, or a further connection of postcopy",
        found=head[:8].hex(" ") or "nothing",
    )


def read_extra(main: Walker, source: Source, number: int) -> Extra:
    """Read a further connection into the RAM of the main stream.

    :param main: the walker of the main stream, after all of it.
    :param number: of the input; see :class:`~qemu_svm.stream.ram.runs.Place`.
    :raises StreamError: ``source`` is not a further connection.
    """
    kind = kind_of(source)
    state = main.ram
    before = state.runs.records if state.runs is not None else 0
    state.input, state.current = number, -1
    state.open_ended = kind == "preempt"
    problem, ended = None, False
    try:
        if kind == "preempt":
            reader = Reader(source)
            while not reader.at_end():
                ram.step_over(reader, state)
        else:
            walker = main.continued_in(source)
            for _ in walker.steps():
                pass
            ended = walker.ended
            if not ended:
                raise Truncated(
                    "the resumed stream ends without an EOF record", offset=source.size()
                )
    except StreamError as error:
        error.section = f"connection {number} ({kind})"
        problem = error
    pages = state.runs.records - before if state.runs is not None else 0
    return Extra(source, kind, pages, ended, problem)
