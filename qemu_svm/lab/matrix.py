"""The restore matrix: guests saved on each host and restored on each host.

A host is a kernel and a QEMU.  Every host boots twice: once to save each guest
with every machine type that a destination needs, once to restore the streams of all
hosts.  The machine type is that of the older QEMU of a pair.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import ClassVar, Self

from qemu_svm.errors import EnvironmentFault, Refused
from qemu_svm.lab.box.session import BoxSession
from qemu_svm.lab.capture import capture
from qemu_svm.lab.explain import explanations
from qemu_svm.lab.guests import Guest, assemble
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.restore import Outcome, Verdict, copy_to_share, restore, settings_of
from qemu_svm.lab.suites.catalogue import QEMUS, SUITES
from qemu_svm.lab.vm import Settings, running
from qemu_svm.machine import Machine, read_machine
from qemu_svm.results import Result
from qemu_svm.rules import Finding
from qemu_svm.source import Source, open_source
from qemu_svm.stream import read_stream

MACHINES: Mapping[str, str] = {qemu: f"pc-i440fx-{qemu}" for qemu in QEMUS}
"""By QEMU's release line, the newest machine type that it has."""


@dataclass(frozen=True, slots=True, order=True)
class Host:
    """A kernel, by its line or its version, and a QEMU, by its line."""

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

    :param machine: machine type.
    :param rules: findings about the stream on the destination; empty if the guest continued.
    """

    guest: str
    source: Host
    target: Host
    machine: str
    outcome: Outcome
    rules: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class Matrix(Result):
    """A matrix, complete or as far as it was run.

    :param versions: exact package versions of each host.
    :param foreign: names of the patch or the modules that the hosts' KVM is from, or None.
    """

    verb: ClassVar[str] = "lab_matrix"
    cells: list[Cell] = field(default_factory=list)
    versions: dict[Host, Mapping[str, str]] = field(default_factory=dict)
    foreign: str | None = None


Boot = Callable[[Host], AbstractContextManager[BoxSession]]

# By source, guest and machine type: a stream, or the reason why there is none.
_Saved = dict[tuple[Host, str, str], Path | Outcome]


def run(
    hosts: Sequence[Host],
    guests: Sequence[Guest],
    *,
    boot: Boot,
    progress: Progress = SILENT,
    into: Matrix | None = None,
) -> Matrix:
    """Save on every host, restore on every host.

    :param boot: makes a box for a host.
    :param progress: is notified of each step.
    :param into: the result to fill, for callers that use it after an interruption.
    :raises LabError: a box does not start, or there is no room for the streams.
    """
    result = Matrix() if into is None else into
    with host_faults("make a directory for the streams"):
        temporary = tempfile.TemporaryDirectory(prefix="svmstream-matrix-")
    with temporary as folder:
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
    """Return the machine type that both QEMUs have: that of the older one."""
    return MACHINES[min(source.qemu, target.qemu, key=QEMUS.index)]


def _machines(source: Host, targets: Sequence[Host]) -> list[str]:
    return sorted({machine_of(source, target) for target in targets})


def _save(box: BoxSession, guest: Guest, machine: str, folder: Path) -> Path | Outcome:
    image = assemble(guest)
    settings = Settings(machine=machine, smp=len(guest.vcpus))
    try:
        with running(box, settings, image=image.data) as vm:
            taken = capture(vm, guest, image)
    except (EnvironmentFault, Refused) as error:
        return Outcome(Verdict.NOT_SAVED, error.what, guest.name)
    with host_faults(f"move {taken.path} to {folder}"):
        return Path(shutil.move(taken.path, folder))


class _Target:
    # A destination, which is booted again after its kernel has crashed.
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
        self, stream: Path | Outcome, saved_with: Mapping[str, str]
    ) -> tuple[Outcome, tuple[Finding, ...]]:
        if isinstance(stream, Outcome):
            return stream, ()
        with open_source(str(stream)) as source:
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
            name = copy_to_share(self._box, source)
            outcome = restore(self._box, name, settings_of(machine))
        except EnvironmentFault as error:
            # A box that hangs prints nothing on its console; that is a result as well.
            return Outcome(Verdict.CRASH, error.what)
        (self._box.share / name).unlink()
        return outcome
