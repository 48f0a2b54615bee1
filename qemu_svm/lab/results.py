"""Results of the lab's verbs, as they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from qemu_svm.findings.witness import Witness
from qemu_svm.lab.box.named import BoxRecord
from qemu_svm.lab.box.session import BoxSession
from qemu_svm.lab.explain import explanations
from qemu_svm.lab.guests import Guest
from qemu_svm.lab.restore import Outcome, copy_to_share, restore, settings_of
from qemu_svm.lab.vm import Settings
from qemu_svm.machine import Machine
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
class BoxRestore(Result):
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


def restore_in(
    box: BoxSession,
    machine: Machine,
    name: str | None = None,
    *,
    devices: Sequence[str] = (),
    npt: bool = True,
    record: str | None = None,
) -> BoxRestore:
    """Restore a stream in a box, and explain a failure by the rules that apply there.

    :param name: machine type; None for the stream's.
    :param devices: additional arguments of QEMU.
    :param npt: the box's KVM uses nested paging.
    :param record: file for a recording of QEMU's ioctls.
    :raises Refused: the stream names no machine type or has no RAM.
    """
    settings = settings_of(machine, name)
    settings = replace(settings, devices=settings.devices + tuple(devices))
    source = machine.stream.source
    outcome = restore(box, copy_to_share(box, source), settings, record=record)
    versions = dict(box.versions)
    why = () if outcome.good else explanations(machine, versions, npt=npt)
    return BoxRestore(source.path, outcome, settings, versions, why)
