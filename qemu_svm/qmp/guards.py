"""Which commands may be called in which run state of the guest.

QEMU refuses some of them itself, but not always before it has changed
something, and its messages assume knowledge of its internals.  Here a command's
preconditions are data; :meth:`qemu_svm.qmp.Client.guard` queries QEMU and checks
them.

Source: QEMU ``qapi/run-state.json``, ``system/runstate.c`` (allowed
transitions), ``migration/migration.c`` (what ``migrate`` looks at).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qemu_svm.errors import Refused
from qemu_svm.qmp.answers import Migration, Status

STATES = frozenset(
    {"debug", "inmigrate", "internal-error", "io-error", "paused", "postmigrate", "prelaunch"}
    | {"finish-migrate", "restore-vm", "running", "save-vm", "shutdown", "suspended", "watchdog"}
    | {"guest-panicked", "colo", "preconfig"}
)
"""Every run state that a QEMU up to 11.1 has."""

_BUSY = frozenset({"finish-migrate", "restore-vm", "save-vm", "colo"})
_UNBUILT = frozenset({"preconfig"})

_WORDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "inmigrate": (
            "this QEMU is itself waiting for a stream (-incoming)",
            "svmstream restore sends it one",
        ),
        "postmigrate": (
            "the guest is stopped after an earlier migration, and QEMU does not migrate it again",
            "if it does not run elsewhere, 'cont' resumes it",
        ),
        "finish-migrate": ("a migration is about to end", "try again in a moment"),
        "restore-vm": ("a snapshot is being loaded", "try again in a moment"),
        "save-vm": ("a snapshot is being saved", "try again in a moment"),
        "colo": ("the guest is one of a COLO pair", "end COLO first"),
        "preconfig": ("the machine is not created yet (--preconfig)", "x-exit-preconfig continues"),
        "shutdown": ("the guest has shut down", "'system_reset' starts it again"),
        "internal-error": ("QEMU stopped the guest after an internal error", "only a reset helps"),
    }
)


@dataclass(frozen=True, slots=True)
class Guard:
    """The preconditions of a command.

    :param states: run states in which it may be called.
    :param idle: no migration may be in progress.
    """

    states: frozenset[str]
    idle: bool = False


GUARDS: Mapping[str, Guard] = MappingProxyType(
    {
        "migrate": Guard(STATES - _BUSY - _UNBUILT - {"inmigrate", "postmigrate"}, idle=True),
        "migrate-incoming": Guard(frozenset({"inmigrate"}), idle=True),
        "cont": Guard(STATES - _BUSY - _UNBUILT - {"shutdown", "internal-error"}),
        "stop": Guard(STATES - _BUSY - _UNBUILT - {"inmigrate"}),
    }
)
"""By command; a command that is not listed has no precondition."""


def check(command: str, status: Status, migration: Migration | None = None) -> None:
    """Check a command's preconditions.

    :param migration: required for commands whose guard has ``idle`` set.
    :raises Refused: a precondition is not met.
    """
    guard = GUARDS.get(command)
    if guard is None:
        return
    if guard.idle and migration is not None and migration.active:
        raise Refused(
            f"a migration is already in progress ({migration.status})",
            hint="it was not touched; svmstream watch shows it",
        )
    if status.state not in guard.states:
        words, hint = _WORDS.get(status.state, (f"the guest is in the state '{status.state}'", ""))
        if command == "migrate-incoming":
            words = f"this QEMU does not wait for a stream (its state is '{status.state}')"
            hint = "start it with -incoming defer"
        raise Refused(f"'{command}' is not possible: {words}", hint=hint or None)
