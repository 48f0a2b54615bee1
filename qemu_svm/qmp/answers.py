"""QEMU's answers as typed values.

QEMU is not trusted more than a stream: a member that is missing or of another
type is left out or raises an error, and is never passed on.

Source: QEMU ``qapi/run-state.json``, ``qapi/migration.json``, ``qapi/control.json``.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qemu_svm.errors import QmpError

ENDED = frozenset({"completed", "failed", "cancelled"})
"""States of a migration that is over.

Every other state but ``none`` is one of a migration in progress, including those
that newer QEMUs add: 11.1 added ``failing``.
"""


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """QEMU's version; compares like a tuple."""

    major: int
    minor: int
    micro: int = 0

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.micro}"


@dataclass(frozen=True, slots=True)
class Status:
    """Answer of ``query-status``: QEMU's run state."""

    state: str
    running: bool


@dataclass(frozen=True, slots=True)
class Migration:
    """Answer of ``query-migrate``.

    Sizes are in bytes, times in milliseconds, ``dirty_rate`` in pages per second,
    ``mbps`` in megabits per second.  What QEMU does not report is None.

    :param status: None if there was no migration yet.
    """

    status: str | None = None
    error: str | None = None
    transferred: int | None = None
    remaining: int | None = None
    total: int | None = None
    normal: int | None = None
    zero: int | None = None
    dirty_rate: int | None = None
    passes: int | None = None
    page_size: int | None = None
    mbps: float | None = None
    expected_downtime: int | None = None
    downtime: int | None = None
    setup_time: int | None = None
    total_time: int | None = None
    blockers: tuple[str, ...] = ()

    @property
    def active(self) -> bool:
        """Whether a migration is in progress."""
        return self.status not in (None, "none") and not self.ended

    @property
    def ended(self) -> bool:
        """Whether the last migration has ended, successfully or not."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class Event:
    """An asynchronous event of QEMU.

    :param time: seconds since the epoch, by the clock of QEMU's host.
    """

    name: str
    data: Mapping[str, Any]
    time: float


def version(answer: object) -> Version:
    """Read the version in a greeting or an answer of ``query-version``.

    :raises QmpError: it has another form.
    """
    numbers = mapping(mapping(answer, "version").get("qemu"), "version")
    found = [number(numbers, name) for name in ("major", "minor", "micro")]
    if None in found:
        raise unexpected("version", answer)
    return Version(*(one or 0 for one in found))


def status(answer: object) -> Status:
    """Read an answer of ``query-status``.

    :raises QmpError: it has another form.
    """
    found = mapping(answer, "query-status")
    state = string(found, "status")
    if state is None:
        raise unexpected("query-status", answer)
    return Status(state, found.get("running") is True)


def migration(answer: object) -> Migration:
    """Read an answer of ``query-migrate``.

    :raises QmpError: it has another form.
    """
    found = mapping(answer, "query-migrate")
    ram = mapping(found.get("ram", {}), "query-migrate")
    rate = ram.get("mbps")
    reasons = found.get("blocked-reasons", [])
    return Migration(
        status=string(found, "status"),
        error=string(found, "error-desc"),
        transferred=number(ram, "transferred"),
        remaining=number(ram, "remaining"),
        total=number(ram, "total"),
        normal=number(ram, "normal"),
        zero=number(ram, "duplicate"),
        dirty_rate=number(ram, "dirty-pages-rate"),
        passes=number(ram, "dirty-sync-count"),
        page_size=number(ram, "page-size"),
        mbps=_rate(rate),
        expected_downtime=number(found, "expected-downtime"),
        downtime=number(found, "downtime"),
        setup_time=number(found, "setup-time"),
        total_time=number(found, "total-time"),
        blockers=tuple(one for one in reasons if isinstance(one, str))
        if isinstance(reasons, list)
        else (),
    )


def capabilities(answer: object) -> dict[str, bool]:
    """Read an answer of ``query-migrate-capabilities``: state by name.

    :raises QmpError: it has another form.
    """
    found = {}
    for one in answer if isinstance(answer, list) else ():
        name = string(mapping(one, "query-migrate-capabilities"), "capability")
        if name is not None:
            found[name] = one.get("state") is True
    return found


def commands(answer: object) -> frozenset[str]:
    """Read an answer of ``query-commands``: names.

    :raises QmpError: it has another form.
    """
    if not isinstance(answer, list):
        raise unexpected("query-commands", answer)
    names = (mapping(one, "query-commands").get("name") for one in answer)
    return frozenset(name for name in names if isinstance(name, str))


def mapping(answer: object, what: str) -> Mapping[str, Any]:
    """Return the answer of the command ``what`` if it is a JSON object.

    :raises QmpError: it is something else.
    """
    if not isinstance(answer, Mapping):
        raise unexpected(what, answer)
    return answer


def unexpected(what: str, answer: object) -> QmpError:
    """Return the error that an answer of the command ``what`` has another form."""
    return QmpError(f"QMP: unexpected answer of {what}: {reprlib.repr(answer)}")


def number(answer: Mapping[str, Any], name: str) -> int | None:
    """Return the 64-bit integer of that name, or None if there is none."""
    value = answer.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= 1 << 64:
        return None
    return value


def _rate(value: object) -> float | None:
    # JSON has numbers of any size, NaN and infinity included as Python reads it.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1 << 63 else None


def string(answer: Mapping[str, Any], name: str) -> str | None:
    """Return the string of that name, or None if there is none."""
    value = answer.get(name)
    return value if isinstance(value, str) else None
