"""What QEMU answers, as typed values.

QEMU is trusted no more than a stream: a member that is missing or of another
type is left out or refused with an error, never passed on.

Source: QEMU ``qapi/run-state.json``, ``qapi/migration.json``, ``qapi/control.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qemu_svm.errors import QmpError

ENDED = frozenset({"completed", "failed", "cancelled"})
"""States of a migration that is over.

Every other state but ``none`` is one under way, also one that a newer QEMU
brings: 11.1 added ``failing``.
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

    Sizes are bytes, times milliseconds, ``dirty_rate`` pages a second,
    ``mbps`` megabits a second.  What QEMU does not tell is None.

    :param status: None if there never was a migration.
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
        """Whether a migration is under way."""
        return self.status not in (None, "none") and not self.ended

    @property
    def ended(self) -> bool:
        """Whether the last migration is over, one way or the other."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class Event:
    """Something that QEMU reported by itself.

    :param time: seconds since the epoch, by QEMU's host.
    """

    name: str
    data: Mapping[str, Any]
    time: float


def version(answer: object) -> Version:
    """Read the version in a greeting or an answer of ``query-version``."""
    numbers = mapping(mapping(answer, "version").get("qemu"), "version")
    found = [number(numbers, name) for name in ("major", "minor", "micro")]
    if None in found:
        raise QmpError(f"QMP: the version is not understood: {answer!r}")
    return Version(*(one or 0 for one in found))


def status(answer: object) -> Status:
    """Read an answer of ``query-status``."""
    found = mapping(answer, "query-status")
    state = string(found, "status")
    if state is None:
        raise QmpError(f"QMP: the answer of query-status is not understood: {answer!r}")
    return Status(state, found.get("running") is True)


def migration(answer: object) -> Migration:
    """Read an answer of ``query-migrate``."""
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
        mbps=float(rate) if isinstance(rate, (int, float)) else None,
        expected_downtime=number(found, "expected-downtime"),
        downtime=number(found, "downtime"),
        setup_time=number(found, "setup-time"),
        total_time=number(found, "total-time"),
        blockers=tuple(one for one in reasons if isinstance(one, str))
        if isinstance(reasons, list)
        else (),
    )


def capabilities(answer: object) -> dict[str, bool]:
    """Read an answer of ``query-migrate-capabilities``: state by name."""
    found = {}
    for one in answer if isinstance(answer, list) else ():
        name = string(mapping(one, "query-migrate-capabilities"), "capability")
        if name is not None:
            found[name] = one.get("state") is True
    return found


def mapping(answer: object, what: str) -> Mapping[str, Any]:
    """Return the answer if it is a JSON object.

    :raises QmpError: it is something else.
    """
    if not isinstance(answer, Mapping):
        raise QmpError(f"QMP: the answer of {what} is not understood: {answer!r}")
    return answer


def number(answer: Mapping[str, Any], name: str) -> int | None:
    """Return a whole number, or None if there is none of that name."""
    value = answer.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def string(answer: Mapping[str, Any], name: str) -> str | None:
    """Return a string, or None if there is none of that name."""
    value = answer.get(name)
    return value if isinstance(value, str) else None
