"""A whole log: read once for an overview, then run by run."""

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
class AttributedRun:
    """A run and the level that ran in it, with how that is known."""

    run: Run
    role: Role
    certainty: Certainty


@dataclass
class Log:
    """The overview of a log.

    :param part: numbers of the records to look at; pages that changes refer to may come
        before them.
    :param counts: records by :class:`~qemu_svm.vmruns.structs.RecordKind`.
    :param nanoseconds: time of the last record, since the emulator started.
    :param end: why the log ended; None if it has no end record.
    :param damage: why it could not be read to its end.
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
        """All VMCBs that were entered, by their first entry."""
        return sorted(self.roles.vmcbs.values(), key=lambda vmcb: vmcb.first)

    def runs(self) -> Iterator[AttributedRun]:
        """Yield every run, up to the damage if there is any."""
        attributed = range(len(self.roles))
        for place, run in zip(attributed, runs(self.events()), strict=False):
            yield AttributedRun(run, *self.roles.of(place))

    def events(self) -> Iterator[Event]:
        """Yield every record, up to the damage if there is any."""
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
    """Read a log once and attribute its runs.

    :param part: numbers of the records to look at.
    :raises StreamError: it does not start with the header of a log.
    """
    reader = LogReader(source, limits)
    log = Log(source, part, reader.header, Roles(limits), {}, 0, None, None, limits)
    try:
        log.roles.learn(runs(_until_damage(reader, log), log.counts))
    except LimitExceeded as limit:
        log.damage = limit
    log.end = reader.end
    return log


def _until_damage(reader: LogReader, log: Log) -> Iterator[Event]:
    try:
        for event in _part(reader, log.part):
            log.nanoseconds = event.time
            yield event
    except StreamError as damage:
        log.damage = damage
