"""Which command may be called in which run state of the guest.

QEMU refuses some of these itself, but not always before it changed something,
and its words assume knowledge of its insides.  What a command needs is data
here; :meth:`qemu_svm.qmp.Client.guard` asks QEMU and compares.

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
            "this QEMU waits for a stream itself (-incoming)",
            "svmstream restore feeds it one",
        ),
        "postmigrate": (
            "the guest is stopped after an earlier migration, and QEMU does not migrate it again",
            "if it is not running elsewhere, 'cont' wakes it up",
        ),
        "finish-migrate": ("a migration is just ending", "try again in a moment"),
        "restore-vm": ("a snapshot is being loaded", "try again in a moment"),
        "save-vm": ("a snapshot is being saved", "try again in a moment"),
        "colo": ("the guest is one of a COLO pair", "end COLO first"),
        "preconfig": ("the machine is not built yet (--preconfig)", "x-exit-preconfig goes on"),
        "shutdown": ("the guest has shut down", "'system_reset' starts it again"),
        "internal-error": ("QEMU stopped the guest on an internal error", "only a reset helps"),
    }
)


@dataclass(frozen=True, slots=True)
class Guard:
    """What a command needs.

    :param states: run states in which it may be called.
    :param idle: no migration may be under way.
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
"""By command; a command that is not listed is not guarded."""


def check(command: str, status: Status, migration: Migration | None = None) -> None:
    """Compare what a command needs with what is.

    :param migration: needed for commands whose guard asks for ``idle``.
    :raises Refused: the command would be out of place.
    """
    guard = GUARDS.get(command)
    if guard is None:
        return
    if guard.idle and migration is not None and migration.active:
        raise Refused(
            f"a migration is under way already ({migration.status})",
            hint="it was left alone; svmstream watch shows it",
        )
    if status.state not in guard.states:
        words, hint = _WORDS.get(status.state, (f"the guest is in the state '{status.state}'", ""))
        if command == "migrate-incoming":
            words = f"this QEMU does not wait for a stream (its state is '{status.state}')"
            hint = "start it with -incoming defer"
        raise Refused(f"'{command}' is not possible: {words}", hint=hint or None)
