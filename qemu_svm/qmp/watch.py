"""Observation of a migration started by any client, without affecting it.

QEMU is queried at an interval (``query-migrate`` and the settings), and at once
when it sends an event.  Nothing is changed: the capability ``events``, without
which QEMU sends no MIGRATION events, is left as it is, so a change of state may
be seen one interval late.

Rates are measured between answers, over a few seconds: QEMU's own are those of
its last tenth of a second.

Source: QEMU ``qapi/migration.json``, ``migration/migration.c``
(``fill_source_migration_info``, ``fill_destination_migration_info``).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from qemu_svm.errors import QmpError
from qemu_svm.qmp import answers, timeouts
from qemu_svm.qmp.answers import Event, Migration, Status
from qemu_svm.qmp.client import Client, Events
from qemu_svm.results import Result

EVENTS = ("MIGRATION", "MIGRATION_PASS", "STOP", "RESUME")
"""Events after which QEMU is queried at once."""

_WINDOW_SECONDS = 5.0  # over which rates are measured
_NOISE = 0.1


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates in bytes per second; None where they cannot be determined.

    :param wire: bytes sent.
    :param pages: guest memory processed, whatever size it had on the wire.
    :param dirty: guest memory that the guest dirties; None if it does not run.
    """

    wire: float | None = None
    pages: float | None = None
    dirty: float | None = None

    @property
    def gain(self) -> float | None:
        """How fast the remaining memory shrinks; None if it does not, or is not known."""
        if self.pages is None:
            return None
        gain = self.pages - (self.dirty or 0.0)
        # Both are measured: if they are about equal, the difference is noise.
        return gain if gain > self.pages * _NOISE else None

    @property
    def endless(self) -> bool:
        """Whether the guest dirties memory about as fast as it is processed, or faster."""
        return bool(self.dirty) and self.pages is not None and self.gain is None


@dataclass(frozen=True, slots=True)
class Sample:
    """The state of a migration at one moment.

    :param time: seconds since the epoch, by this host's clock.
    :param cause: why QEMU was queried: ``poll`` or the name of an event.
    :param answer: QEMU's answer of ``query-migrate``, unchanged.
    :param capabilities: whether each is on, by name.
    :param eta: seconds until RAM is sent at the present rate; None if it is
        not known or never.
    """

    time: float
    cause: str
    vm: Status
    migration: Migration
    answer: Mapping[str, Any]
    capabilities: Mapping[str, bool]
    parameters: Mapping[str, Any]
    rates: Rates = Rates()
    eta: float | None = None

    def same(self, other: Sample) -> bool:
        """Whether the state is the same as in another sample, apart from time and rates."""
        return (
            self.vm == other.vm
            and self.answer == other.answer
            and self.capabilities == other.capabilities
            and self.parameters == other.parameters
        )


@dataclass(frozen=True, slots=True, repr=False)
class Update(Result):
    """A sample that differs from the one before.

    :param before: None for the first sample.
    """

    verb: ClassVar[str] = "watch"
    sample: Sample
    before: Sample | None = None


class Pace:
    """Computes rates from the samples of the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def rate(self, sample: Sample) -> Sample:
        """Return the sample with its rates."""
        found = sample.migration
        if found.transferred is None or found.page_size is None:
            self._seen.clear()
            return sample
        done = _pages(sample) * found.page_size
        seen = self._seen
        if seen and found.transferred < seen[-1][1]:
            seen.clear()  # another migration
        seen.append((sample.time, found.transferred, done))
        while len(seen) > 2 and seen[-1][0] - seen[1][0] > _WINDOW_SECONDS:
            seen.popleft()
        dirty = None
        if found.dirty_rate is not None and sample.vm.running:  # else it is out of date
            dirty = float(found.dirty_rate * found.page_size)
        span = seen[-1][0] - seen[0][0]
        if span <= 0:
            return replace(sample, rates=Rates(dirty=dirty))
        wire = (seen[-1][1] - seen[0][1]) / span
        pages = (seen[-1][2] - seen[0][2]) / span
        rates = Rates(wire, pages, dirty)
        known = found.active and found.remaining is not None and rates.gain is not None
        eta = (found.remaining or 0) / (rates.gain or 1) if known else None
        return replace(sample, rates=rates, eta=eta)


async def watch(
    client: Client, *, interval: float = 1.0, wait: bool = False
) -> AsyncGenerator[Sample, None]:
    """Yield samples of a migration until it has ended; the last one shows how it ended.

    :param interval: seconds between two queries.
    :param wait: wait for a migration that starts from now on; else, if none is in
        progress, there is one sample of the last migration or of none.
    :raises QmpError: the connection was lost.
    """
    pace = Pace()
    async with client.events(*EVENTS) as events:
        past = last = pace.rate(await _sample(client, "poll"))
        waiting = wait and not past.migration.active
        yield last
        while waiting or last.migration.active:
            event = None
            try:
                event = await _next(client, events, interval)
                sample = await _sample(client, "poll" if event is None else event.name)
            except QmpError as error:
                if client.connected:
                    raise
                yield await _ended(client, events, event, last, error)
                return
            last = pace.rate(sample)
            began = _status(event) is not None or _identity(last) != _identity(past)
            waiting = waiting and not began
            yield last


def _pages(sample: Sample) -> int:
    # Pages processed: sent whole, as zero, or as a delta.
    xbzrle = answers.mapping(sample.answer.get("xbzrle-cache", {}), "query-migrate")
    found = sample.migration
    return (found.normal or 0) + (found.zero or 0) + (answers.number(xbzrle, "pages") or 0)


def _identity(sample: Sample) -> tuple[object, ...]:
    # Differs between two migrations, and does not change after one has ended.
    found = sample.migration
    return found.status, found.error, found.transferred, found.total_time


async def _sample(client: Client, cause: str) -> Sample:
    answer = answers.mapping(await client.execute("query-migrate"), "query-migrate")
    # The guest's state last: the end of a migration may resume the guest.
    status = await client.status()
    return Sample(
        time.time(),
        cause,
        status,
        answers.migration(answer),
        answer,
        await client.capabilities(),
        await client.parameters(),
    )


async def _next(client: Client, events: Events, interval: float) -> Event | None:
    # The next event; None when it is time for the next query.
    try:
        return await events.next(interval)
    except QmpError:
        if client.connected:
            return None
        raise


def _status(event: Event | None) -> str | None:
    # The migration's state, if the event reports one.
    if event is None or event.name != "MIGRATION":
        return None
    return answers.string(event.data, "status")


async def _ended(
    client: Client, events: Events, event: Event | None, last: Sample, error: QmpError
) -> Sample:
    # The last sample, if QEMU reported the end before it exited: such events are still queued.
    status = _status(event)
    with contextlib.suppress(QmpError):
        while status not in answers.ENDED:
            status = _status(await events.next(timeouts.LAST_EVENT)) or status
    if status not in answers.ENDED:
        before = last.migration.status
        raise QmpError(
            f"{client.address}: the connection was lost"
            + (f"; the last known state of the migration is {before}" if before else ""),
            hint="QEMU has exited or closed it; how the migration ended is not known",
        ) from error
    return replace(
        last,
        time=time.time(),
        cause="MIGRATION",
        migration=replace(last.migration, status=status),
        answer={**last.answer, "status": status},
        eta=None,
    )
