"""The restore matrix: guests saved on each host and restored on each host.

A host is a kernel and a QEMU.  Every host boots twice: once to save each guest
with every machine type that a destination needs, once to restore the streams of all
hosts.  The machine type is that of the older QEMU of a pair.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import ClassVar, Self

import zstandard

from qemu_svm.errors import EnvironmentFault, LabError, Refused
from qemu_svm.lab.box.box import Box
from qemu_svm.lab.box.session import BoxSession
from qemu_svm.lab.box.share import forget
from qemu_svm.lab.capture import capture
from qemu_svm.lab.explain import explanations
from qemu_svm.lab.guests import Guest, assemble
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.restore import Outcome, Verdict, copy_to_share, restore, settings_of
from qemu_svm.lab.suites import build
from qemu_svm.lab.suites.catalogue import QEMUS, SUITES
from qemu_svm.lab.vm import Settings, running
from qemu_svm.machine import Machine, read_machine
from qemu_svm.results import Result
from qemu_svm.rules import Finding
from qemu_svm.source import Source, open_source
from qemu_svm.stream import read_stream
from qemu_svm.work.items import Lost, R, Runner

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

Modules = Mapping[str, Mapping[str, bytes]]
"""By kernel, the modules that its boxes load in place of its own."""

_NO_MODULES: Modules = {}

_Stream = bytes | Outcome
"""Compressed; or the reason why there is none."""


@dataclass(frozen=True, slots=True)
class _Saving:
    # What one host saves: each guest as each machine type.
    source: Host
    guests: tuple[Guest, ...]
    machines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Saved:
    # By guest and machine type.
    versions: Mapping[str, str]
    streams: Mapping[tuple[str, str], _Stream]


@dataclass(frozen=True, slots=True)
class _Restoring:
    # What one host restores: guest, source, machine type, stream, versions of the source.
    target: Host
    streams: tuple[tuple[str, Host, str, _Stream, Mapping[str, str]], ...]


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
    saved: dict[Host, _Saved] = {}
    for saving in _savings(hosts, guests):
        saved[saving.source] = _saved(saving, boot, progress)
        result.versions[saving.source] = saved[saving.source].versions
    for restoring in _restorings(hosts, guests, saved):
        for cell in _cells(restoring, boot, progress, len(result.cells)):
            result.cells.append(cell)
    return result


def spread(
    hosts: Sequence[Host],
    guests: Sequence[Guest],
    runner: Runner,
    *,
    emulator: str | None = None,
    modules: Modules = _NO_MODULES,
    progress: Progress = SILENT,
    into: Matrix | None = None,
) -> Matrix:
    """Make the matrix of :func:`run` in boxes of whoever does the items: hosts.

    :param emulator: argument of :class:`~qemu_svm.lab.box.box.Box`; ``modules`` is that by kernel.
    :raises LabError: nobody could do one.
    """
    result = Matrix() if into is None else into
    saved: dict[Host, _Saved] = {}
    savings = _savings(hosts, guests)
    progress.step("saving", 0, len(savings))
    with closing(
        runner.results(partial(_save_here, emulator=emulator, modules=modules), savings)
    ) as answers:
        for saving, answer in answers:
            saved[saving.source] = _there(answer, saving.source)
            progress.step("saving", len(saved), len(savings))
    result.versions.update({host: saved[host].versions for host in hosts})
    restorings = list(_restorings(hosts, guests, saved))
    cells: dict[Host, list[Cell]] = {}
    work = partial(_restore_here, emulator=emulator, modules=modules)
    with closing(runner.results(work, restorings)) as made:
        for restoring, of_target in made:
            cells[restoring.target] = _there(of_target, restoring.target)
            result.cells[:] = [cell for host in hosts for cell in cells.get(host, ())]
            progress.step("restoring", len(cells), len(restorings))
    return result


def _there(answer: R | Lost, host: Host) -> R:
    if isinstance(answer, Lost):
        raise LabError(f"{host}: {answer.why}")
    return answer


def _savings(hosts: Sequence[Host], guests: Sequence[Guest]) -> list[_Saving]:
    return [_Saving(host, tuple(guests), tuple(_machines(host, hosts))) for host in hosts]


def _restorings(
    hosts: Sequence[Host], guests: Sequence[Guest], saved: Mapping[Host, _Saved]
) -> Iterator[_Restoring]:
    for target in hosts:
        streams = []
        for guest, source in product(guests, hosts):
            machine, there = machine_of(source, target), saved[source]
            stream = there.streams[guest.name, machine]
            streams.append((guest.name, source, machine, stream, there.versions))
        yield _Restoring(target, tuple(streams))


def _booting(emulator: str | None, modules: Modules) -> Boot:
    # On a worker.
    def boot(host: Host) -> Box:
        build.require_for_box(host.kernel, qemu=host.qemu, emulator=emulator)
        return Box(host.kernel, qemu=host.qemu, emulator=emulator, modules=modules.get(host.kernel))

    return boot


def _save_here(saving: _Saving, emulator: str | None, modules: Modules) -> _Saved:
    return _saved(saving, _booting(emulator, modules), SILENT)


def _restore_here(restoring: _Restoring, emulator: str | None, modules: Modules) -> list[Cell]:
    return list(_cells(restoring, _booting(emulator, modules), SILENT, 0))


def _saved(saving: _Saving, boot: Boot, progress: Progress) -> _Saved:
    streams: dict[tuple[str, str], _Stream] = {}
    with boot(saving.source) as box:
        for guest, machine in product(saving.guests, saving.machines):
            progress.step(f"saving {guest.name} on {saving.source} as {machine}")
            streams[guest.name, machine] = _save(box, guest, machine)
        return _Saved(dict(box.versions), streams)


def _cells(restoring: _Restoring, boot: Boot, progress: Progress, before: int) -> Iterator[Cell]:
    # ``before``: how many restores there were on other hosts.
    target = restoring.target
    with _Target(target, boot) as host:
        for number, (guest, source, machine, stream, versions) in enumerate(restoring.streams, 1):
            what = f"{guest} from {source} on {target} as {machine}"
            progress.step(f"restore {before + number}: {what}")
            outcome, rules = host.restore(stream, versions)
            yield Cell(guest, source, target, machine, outcome, rules)


def machine_of(source: Host, target: Host) -> str:
    """Return the machine type that both QEMUs have: that of the older one."""
    return MACHINES[min(source.qemu, target.qemu, key=QEMUS.index)]


def _machines(source: Host, targets: Sequence[Host]) -> list[str]:
    return sorted({machine_of(source, target) for target in targets})


def _save(box: BoxSession, guest: Guest, machine: str) -> _Stream:
    image = assemble(guest)
    settings = Settings(machine=machine, smp=len(guest.vcpus))
    try:
        with running(box, settings, image=image.data) as vm:
            taken = capture(vm, guest, image)
    except (EnvironmentFault, Refused) as error:
        return Outcome(Verdict.NOT_SAVED, error.what, guest.name)
    with host_faults(f"read {taken.path}"):
        data = taken.path.read_bytes()
        forget(taken.path)
    return zstandard.compress(data)


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
        self, stream: _Stream, saved_with: Mapping[str, str]
    ) -> tuple[Outcome, tuple[Finding, ...]]:
        if isinstance(stream, Outcome):
            return stream, ()
        with ExitStack() as opened:
            with host_faults("write a stream"):
                file = opened.enter_context(tempfile.NamedTemporaryFile(prefix="svmstream-matrix-"))
                file.write(stream)
                file.flush()
            source = opened.enter_context(open_source(file.name))
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
        forget(self._box.share / name)
        return outcome
