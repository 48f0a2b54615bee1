"""The result of ``doctor``: one check a line."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from qemu_svm.doctor.probe import Facts
from qemu_svm.results import Result


class CheckState(StrEnum):
    """Result of a check.

    A NOTE is for information, a WARNING is a limitation.
    """

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    MISSING = "missing"


PURPOSES = ("replay", "lab", "capture", "restore", "record", "inside")
"""Tasks that need more than a file."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    :param group: heading under which it is listed.
    :param found: what was found.
    :param means: its consequence; empty if there is none.
    :param do: how to fix it; empty if there is nothing to do.
    :param needed_for: purposes that need it.
    """

    group: str
    name: str
    state: CheckState
    found: str
    means: str = ""
    do: str = ""
    needed_for: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, repr=False)
class Diagnosis(Result):
    """All checks.

    :param host: the facts about the host that they rest on, as the probe printed them.
    """

    verb: ClassVar[str] = "doctor"
    checks: tuple[Check, ...]
    host: Facts
