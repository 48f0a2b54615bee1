"""A whole log: surveyed once for what is in it, then given run by run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qemu_svm.errors import LimitExceeded, StreamError
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.source.base import Source
from qemu_svm.vmruns.reader import Event, Header, LogReader
from qemu_svm.vmruns.roles import Certainty, Role, Roles, Vmcb
from qemu_svm.vmruns.runs import Run, runs

WHOLE = range(1 << 64)


@dataclass(frozen=True, slots=True)
class Known:
    """A run, and whose it is."""

    run: Run
    role: Role
    certainty: Certainty


@dataclass
class Log:
    """What a log holds.

    :param part: numbers of the records that count; pages are taken from before.
    :param counts: records by kind.
    :param nanoseconds: of its last record, since the emulator started.
    :param end: why it ended; None if that was not written.
    :param damage: what ended the reading early.
    """

    source: Source
    part: range
    header: Header
    roles: Roles
    counts: dict[int, int]
    nanoseconds: int
    end: str | None
    damage: StreamError | None
    limits: Limits = DEFAULT

    @property
    def vmcbs(self) -> list[Vmcb]:
        """Every VMCB that was entered, in the order of their first entries."""
        return sorted(self.roles.vmcbs.values(), key=lambda vmcb: vmcb.first)

    def runs(self) -> Iterator[Known]:
        """Every run, up to the damage if there is any."""
        known = range(len(self.roles))
        for place, run in zip(known, runs(self.events()), strict=False):
            yield Known(run, *self.roles.of(place))

    def events(self) -> Iterator[Event]:
        """Every record, up to the damage if there is any."""
        try:
            yield from _part(LogReader(self.source, self.limits), self.part)
        except StreamError:
            return


def _part(events: Iterable[Event], part: range) -> Iterator[Event]:
    for event in events:
        if event.number >= part.stop:
            return
        if event.number >= part.start:
            yield event


def read_log(source: Source, part: range = WHOLE, limits: Limits = DEFAULT) -> Log:
    """Survey a log.

    :param part: numbers of the records that count.
    :raises StreamError: it does not even start like one.
    """
    reader = LogReader(source, limits)
    log = Log(source, part, reader.header, Roles(limits), {}, 0, None, None, limits)
    try:
        log.roles.learn(runs(_watched(reader, log), log.counts))
    except LimitExceeded as limit:
        log.damage = limit
    log.end = reader.end
    return log


def _watched(reader: LogReader, log: Log) -> Iterator[Event]:
    try:
        for event in _part(reader, log.part):
            log.nanoseconds = event.time
            yield event
    except StreamError as damage:
        log.damage = damage
