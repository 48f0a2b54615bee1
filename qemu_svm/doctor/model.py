"""What the doctor says: one check a line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How it looks.

    A NOTE is good to know, a WARNING limits something, MISSING is not there.
    """

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    MISSING = "missing"


PURPOSES = ("replay", "lab", "capture", "restore")
"""What one may want to do here that needs more than a file."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    :param group: heading under which it stands.
    :param found: what is there.
    :param means: what follows from it; empty if nothing does.
    :param do: how to get it, or what to do about it.
    :param needed_for: purposes that are not possible without.
    """

    group: str
    name: str
    state: State
    found: str
    means: str = ""
    do: str = ""
    needed_for: frozenset[str] = frozenset()
