"""Saved on each host, restored on each other one: what works between releases.

A host is a kernel and a QEMU.  Every host boots twice: once to save each guest
with every machine type that some destination needs, once to restore what all
hosts have saved.  The machine type is that of the older QEMU of a pair.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Self

from qemu_svm.errors import EnvironmentFault, Refused
from qemu_svm.lab.box.session import Session
from qemu_svm.lab.capture import capture
from qemu_svm.lab.explain import explanations
from qemu_svm.lab.guests import Guest, assemble
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.restore import Outcome, Verdict, put, restore, settings_of
from qemu_svm.lab.suites.catalogue import QEMUS, SUITES
from qemu_svm.lab.vm import Settings, running
from qemu_svm.machine import Machine, read_machine
from qemu_svm.rules import Finding
from qemu_svm.source import Source, open_source
from qemu_svm.stream import read_stream

MACHINES: Mapping[str, str] = {qemu: f"pc-i440fx-{qemu}" for qemu in QEMUS}
"""Machine type by the QEMU that brought it."""


@dataclass(frozen=True, slots=True, order=True)
class Host:
    """A kernel and a QEMU, by their release lines."""

    kernel: str
    qemu: str

    def __str__(self) -> str:
        return f"{self.kernel}/{self.qemu}"


SAME_SUITE = tuple(Host(suite.kernel, suite.qemu) for suite in SUITES)
"""Each kernel with the QEMU of its own suite."""

EVERY_PAIRING = tuple(Host(kernel.kernel, user.qemu) for kernel in SUITES for user in SUITES)
"""Each kernel with each QEMU."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One save and one restore.

    :param rules: that the stream meets on the destination; empty if it went on.
    """

    guest: str
    source: Host
    target: Host
    machine: str
    outcome: Outcome
    rules: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """A matrix, or as much of one as there is yet.

    :param versions: exact package versions of each host.
    """

    cells: list[Cell] = field(default_factory=list)
    versions: dict[Host, Mapping[str, str]] = field(default_factory=dict)


Boot = Callable[[Host], AbstractContextManager[Session]]

# By source, guest and machine type: a stream, or why there is none.
_Saved = dict[tuple[Host, str, str], Path | Outcome]


def run(
    hosts: Sequence[Host],
    guests: Sequence[Guest],
    *,
    boot: Boot,
    progress: Progress = SILENT,
    into: Result | None = None,
) -> Result:
    """Save on every host, restore on every host.

    :param boot: makes a box for a host.
    :param into: filled as it goes on, for who wants what there is after an interruption.
    :param progress: told each step.
    :raises LabError: a box does not start.
    """
    result = Result() if into is None else into
    with tempfile.TemporaryDirectory(prefix="svmstream-matrix-") as folder:
        saved: _Saved = {}
        for source in hosts:
            with boot(source) as box:
                result.versions[source] = dict(box.versions)
                for guest, machine in product(guests, _machines(source, hosts)):
                    progress.step(f"saving {guest.name} on {source} as {machine}")
                    saved[source, guest.name, machine] = _save(box, guest, machine, Path(folder))
        for target in hosts:
            with _Target(target, boot) as host:
                for guest, source in product(guests, hosts):
                    machine = machine_of(source, target)
                    what = f"{guest.name} from {source} on {target} as {machine}"
                    progress.step(f"restore {len(result.cells) + 1}: {what}")
                    outcome, rules = host.restore(
                        saved[source, guest.name, machine], result.versions[source]
                    )
                    result.cells.append(Cell(guest.name, source, target, machine, outcome, rules))
    return result


def machine_of(source: Host, target: Host) -> str:
    """The machine type that both know: that of the older QEMU."""
    return MACHINES[min(source.qemu, target.qemu, key=QEMUS.index)]


def _machines(source: Host, targets: Sequence[Host]) -> list[str]:
    return sorted({machine_of(source, target) for target in targets})


def _save(box: Session, guest: Guest, machine: str, folder: Path) -> Path | Outcome:
    image = assemble(guest)
    settings = Settings(machine=machine, smp=len(guest.vcpus))
    try:
        with running(box, settings, image=image.data) as vm:
            taken = capture(vm, guest, image)
    except (EnvironmentFault, Refused) as error:
        return Outcome(Verdict.NOT_SAVED, error.what, guest.name)
    return Path(shutil.move(taken.path, folder))


class _Target:
    # A destination; booted again after its kernel has crashed.
    def __init__(self, host: Host, boot: Boot) -> None:
        self._host = host
        self._boot = boot
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        self._box = self._stack.enter_context(self._boot(self._host))

    def restore(
        self, kept: Path | Outcome, saved_with: Mapping[str, str]
    ) -> tuple[Outcome, tuple[Finding, ...]]:
        if isinstance(kept, Outcome):
            return kept, ()
        with open_source(str(kept)) as source:
            machine = read_machine(read_stream(source))
            outcome = self._restored(machine, source)
            if outcome.good:
                return outcome, ()
            rules = explanations(machine, self._box.versions, source=saved_with)
        if outcome.verdict is Verdict.CRASH:
            self._stack.close()
            self._start()
        return outcome, rules

    def _restored(self, machine: Machine, source: Source) -> Outcome:
        try:
            name = put(self._box, source)
            outcome = restore(self._box, name, settings_of(machine))
        except EnvironmentFault as error:
            # A box that hangs says nothing on its console, and is an answer all the same.
            return Outcome(Verdict.CRASH, error.what)
        (self._box.share / name).unlink()
        return outcome
