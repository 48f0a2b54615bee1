"""Results of the lab's verbs, as they are shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from qemu_svm.findings.witness import Witness
from qemu_svm.lab.box.named import BoxRecord
from qemu_svm.lab.guests import Guest
from qemu_svm.lab.restore import Outcome
from qemu_svm.lab.vm import Settings
from qemu_svm.results import Result
from qemu_svm.rules import Finding


@dataclass(frozen=True, slots=True, repr=False)
class BoxReport(Result):
    """A named box that was started."""

    verb: ClassVar[str] = "lab_up"
    box: BoxRecord


@dataclass(frozen=True, slots=True, repr=False)
class GuestList(Result):
    """The guests of the lab."""

    verb: ClassVar[str] = "lab_guests"
    guests: tuple[Guest, ...]


@dataclass(frozen=True, slots=True, repr=False)
class RestoreReport(Result):
    """A restore in a box.

    :param path: of the stream, as given by the user.
    :param settings: of the QEMU that loaded it.
    :param versions: exact package versions of the box.
    :param why: findings that explain a failure.
    """

    verb: ClassVar[str] = "lab_restore"
    path: str
    outcome: Outcome
    settings: Settings
    versions: Mapping[str, str]
    why: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, repr=False)
class WitnessReport(Result):
    """A restore in a witness box.

    :param path: of the stream, as given by the user.
    :param plan: the plan, or that QEMU restored it.
    :param versions: exact package versions of the box.
    """

    verb: ClassVar[str] = "lab_witness"
    path: str
    plan: str
    versions: Mapping[str, str]
    witness: Witness
