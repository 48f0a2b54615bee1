"""Watching a migration that anybody started, without touching it.

QEMU is asked again and again (``query-migrate`` and what is set), and at once
when it reports something by itself.  Nothing is changed: the capability
``events``, without which QEMU reports no MIGRATION events, is left as it is,
so a change of state may be seen one interval late.

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
from typing import Any

from qemu_svm.errors import QmpError
from qemu_svm.qmp import answers
from qemu_svm.qmp.answers import Event, Migration, Status
from qemu_svm.qmp.client import Client, Events

EVENTS = ("MIGRATION", "MIGRATION_PASS", "STOP", "RESUME")
"""Events at which QEMU is asked at once."""

_WINDOW_SECONDS = 5.0
_NOISE = 0.1
_LAST_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast it goes, in bytes a second; None where it cannot be told.

    :param wire: bytes sent.
    :param pages: guest memory dealt with, whatever it took on the wire.
    :param dirty: guest memory that the guest writes anew; None if it does not run.
    """

    wire: float | None = None
    pages: float | None = None
    dirty: float | None = None

    @property
    def gain(self) -> float | None:
        """How fast what is left becomes less; None if it does not, or is not known."""
        if self.pages is None:
            return None
        gain = self.pages - (self.dirty or 0.0)
        # Both are measured: where they are about the same, the difference is noise.
        return gain if gain > self.pages * _NOISE else None

    @property
    def endless(self) -> bool:
        """Whether the guest writes about as fast as memory is dealt with, or faster."""
        return bool(self.dirty) and self.pages is not None and self.gain is None


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen at one moment.

    :param time: seconds since the epoch, by this host.
    :param cause: why QEMU was asked: ``poll`` or the name of an event.
    :param answer: QEMU's answer of ``query-migrate``, as it is.
    :param capabilities: by name, whether it is on.
    :param eta: seconds until RAM is sent at the present pace; None if it is
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
        """Whether nothing has changed between the two."""
        return (
            self.vm == other.vm
            and self.answer == other.answer
            and self.capabilities == other.capabilities
            and self.parameters == other.parameters
        )


class Pace:
    """Rates out of the samples of the last seconds."""

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
        if found.dirty_rate is not None and sample.vm.running:  # else it is an old one
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
    """Look at a migration until it is over; the last sample tells how it ended.

    :param interval: seconds between two questions.
    :param wait: for one that begins from now on; otherwise one that is over, or
        that never was, is told as it is.
    :raises QmpError: the connection was lost.
    """
    pace = Pace()
    async with client.events(*EVENTS) as events:
        past = last = pace.rate(await _ask(client, "poll"))
        waiting = wait and not past.migration.active
        yield last
        while waiting or last.migration.active:
            event = None
            try:
                event = await _next(client, events, interval)
                sample = await _ask(client, "poll" if event is None else event.name)
            except QmpError as error:
                if client.connected:
                    raise
                yield await _last_words(client, events, event, last, error)
                return
            last = pace.rate(sample)
            began = _status(event) is not None or _which(last) != _which(past)
            waiting = waiting and not began
            yield last


def _pages(sample: Sample) -> int:
    # Pages dealt with: sent whole, as zero, or as a delta.
    xbzrle = answers.mapping(sample.answer.get("xbzrle-cache", {}), "query-migrate")
    found = sample.migration
    return (found.normal or 0) + (found.zero or 0) + (answers.number(xbzrle, "pages") or 0)


def _which(sample: Sample) -> tuple[object, ...]:
    # Differs between two migrations, and stays when one is over.
    found = sample.migration
    return found.status, found.error, found.transferred, found.total_time


async def _ask(client: Client, cause: str) -> Sample:
    answer = answers.mapping(await client.execute("query-migrate"), "query-migrate")
    # The guest's state after it: a migration that ends lets the guest go on.
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
    # The next event; None when it is time to ask again.
    try:
        return await events.next(interval)
    except QmpError:
        if client.connected:
            return None
        raise


def _status(event: Event | None) -> str | None:
    # The state of the migration that an event tells.
    if event is None or event.name != "MIGRATION":
        return None
    return answers.string(event.data, "status")


async def _last_words(
    client: Client, events: Events, event: Event | None, last: Sample, error: QmpError
) -> Sample:
    # QEMU may have said that it is over before it left; what it said is still there.
    told = _status(event)
    with contextlib.suppress(QmpError):
        while told not in answers.ENDED:
            told = _status(await events.next(_LAST_SECONDS)) or told
    if told not in answers.ENDED:
        status = last.migration.status
        raise QmpError(
            f"{client.address}: the connection was lost"
            + (f"; the migration was last seen {status}" if status else ""),
            hint="QEMU has ended, or hung up; what became of the migration is not known",
        ) from error
    return replace(
        last,
        time=time.time(),
        cause="MIGRATION",
        migration=replace(last.migration, status=told),
        answer={**last.answer, "status": told},
        eta=None,
    )
