"""The same plans on a kernel with a patch and without it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

from qemu_svm.errors import LabError
from qemu_svm.lab.box.box import Box
from qemu_svm.lab.kvm import InBox
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import build
from qemu_svm.lab.suites.catalogue import of_kernel
from qemu_svm.lab.trial.patches import Patch
from qemu_svm.lab.trial.workshop import Module, built_module
from qemu_svm.machine import Machine
from qemu_svm.model import plans
from qemu_svm.model.kvm.vcpu import RunEnd
from qemu_svm.model.saved import Saved
from qemu_svm.replay.compare import INSIDE
from qemu_svm.replay.conform import Guest, read_guest
from qemu_svm.replay.generate import sequence
from qemu_svm.replay.job import ReplayJob, ReplayOptions, ReplayResult, ReplayStep, kernel_of
from qemu_svm.replay.replay import perform
from qemu_svm.replay.shrink import shrink
from qemu_svm.results import Result

PLANS = (
    "cpuid,sregs,nested,regs,msrs,run",
    "selftests",
    "qemu",
    "cpuid,nested,sregs,regs,msrs,run",
    "cpuid,sregs:l1,nested,sregs,regs,run",
    "cpuid,sregs,nested,sregs:cr3=0x105000,nested,regs,run",
    "cpuid,sregs,nested,nested:@0x58/4=0:@0x550=0x111000,regs,run",
    "cpuid,sregs,nested,nested:flags=0x100,regs",
    "cpuid,sregs,nested:flags=0x103,regs,msrs,run",
    "cpuid,sregs,nested:flags=0x1,regs,msrs,run",
    "cpuid,sregs,nested:flags=0x0,regs,nested:flags=0x1",
    "cpuid,sregs,nested:vmcb_pa=0x108001,nested:vmcb_pa=0x109000,regs",
    "cpuid,sregs,nested:@0x58/4=0,nested:@0x558=0x11,nested:@0x4d0=0x1101,nested,regs,run",
    "cpuid,sregs,nested,cpuid:nosvm,regs,run",
    "cpuid,sregs,nested,events:smm=1:flags=0x8,regs",
    "cpuid,sregs,nested,msrs:efer=0x500,regs",
    "cpuid:nosvm,sregs,nested",
    "cpuid,sregs,nested,get:size=64,nested:size=128,regs,run",
)
"""What every trial performs: QEMU's order and the selftests', L1's registers first and last,
a second call that succeeds and one that fails, GIF clear, a pending VMRUN, each check of the
argument, leaving guest mode by a call, by SMM and by EFER."""

_SECONDS = 1.0
_REPEATED = 40
_SHRUNK = 3
_RESTLESS = (
    *("requests", "cpu", "mode", "exits", "arch.regs_avail", "arch.regs_dirty"),
    "arch.*tsc_offset",
    *("*.control.tsc_offset", "*.control.asid", "*.control.clean", "*.control.exit_info_*"),
    *("*.control.exit_int_info*", "*.control.insn_*", "*.control.tlb_ctl"),
)
"""Members that differ between two runs of the same kernel."""


@dataclass(frozen=True, slots=True)
class Change:
    """One part of the state.

    :param name: ``errno``, ``run``, ``end``, a part of the state, ``inside.MEMBER``.
    :param owner: whose register the value with the patch is: ``L1's``, ``L2's``, or empty.
    """

    name: str
    without: Any
    with_patch: Any
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step at which a plan differs.

    :param plans: how many plans differ in the same way; ``plan`` is the shortest of them.
    """

    guest: str
    plan: str
    step: int
    text: str
    changes: tuple[Change, ...]
    plans: int = 1

    @property
    def inside_only(self) -> bool:
        """Whether no ioctl shows it."""
        return all(one.name.startswith(INSIDE) for one in self.changes)


@dataclass(frozen=True, slots=True)
class Crash:
    """A plan that crashed the kernel of one side."""

    guest: str
    plan: str
    with_patch: bool
    words: str


@dataclass(frozen=True, slots=True, repr=False)
class Trial(Result):
    """A patch on trial.

    :param path: of the patch.
    :param kernel: version of the kernel.
    :param guests, plans, sequences: how many were tried.
    :param steps: ioctls and runs that were compared.
    :param differences: those that no ioctl shows last, shorter plans first.
    """

    verb: ClassVar[str] = "lab_patch"
    path: str
    patch: Patch
    module: Module
    kernel: str
    guests: int
    plans: int
    sequences: int
    steps: int
    differences: tuple[Difference, ...]
    crashes: tuple[Crash, ...]

    @property
    def good(self) -> bool:
        """Whether nothing differs, and no kernel crashed."""
        return not self.differences and not self.crashes


@dataclass
class _Sides:
    # The two kernels, and what was found.
    without: InBox
    with_patch: InBox
    steps: int = 0
    crashes: list[Crash] = field(default_factory=list)

    def run(self, guest: Guest, jobs: Sequence[ReplayJob]) -> Iterator[Difference | None]:
        """Perform jobs on both kernels; return the first difference of each."""
        results = [
            list(perform(side, guest.ram, jobs, side.probe(), side.layout()))
            for side in (self.without, self.with_patch)
        ]
        for job, one, other in zip(jobs, *results, strict=True):
            for with_patch, result in ((False, one), (True, other)):
                if result.host:
                    words = result.host.splitlines()[0]
                    self.crashes.append(Crash(guest.name, job.plan, with_patch, words))
            self.steps += min(len(one.steps), len(other.steps))
            yield _difference(guest, job, one, other)


def put_on_trial(
    path: str,
    patch: Patch,
    machines: Sequence[Machine],
    *,
    kernel: str,
    sequences: int = 100,
    seed: int = 1,
    npt: bool = True,
    mirror: str | None = None,
    progress: Progress = SILENT,
) -> Trial:
    """Build kvm-amd with a patch, and perform plans with it and without it.

    :param path: of the patch, for the report.
    :param machines: the captures to restore.
    :param kernel: release line of a suite's kernel.
    :param sequences: number of random plans for each capture.
    :raises PatchRefused: the patch does not apply, or does not compile.
    :raises LabError: a box cannot be started.
    """
    suite = of_kernel(kernel)
    with ExitStack() as stack:
        held = stack.enter_context(build.using(suite, mirror=mirror, progress=progress))
        module = built_module(held, patch, progress=progress)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trial")))

        def boot(modules: dict[str, bytes] | None) -> Any:
            return lambda share: Box(
                kernel=kernel, npt=npt, share=share, mirror=mirror, modules=modules,
                progress=progress,
            )  # fmt: skip

        without = stack.enter_context(InBox(boot(None)))
        with_patch = stack.enter_context(InBox(boot(dict(module.files)), module.types))
        sides = _Sides(without, with_patch)
        try:
            with_patch.probe()
        except LabError as error:
            raise LabError(f"with the patch: {error.what}", hint=error.hint) from error
        found: list[tuple[Guest, ReplayJob, Difference]] = []
        count = 0
        for number, machine in enumerate(machines):
            guest = read_guest(machine, folder / f"ram{number}")
            stack.enter_context(closing(guest.ram))
            progress.step(f"plans of {guest.name}", number, len(machines))
            jobs = list(_jobs(guest, sequences, seed))
            count += len(jobs)
            found += [
                (guest, job, one)
                for job, one in zip(jobs, sides.run(guest, jobs), strict=True)
                if one is not None
            ]
        progress.step("what differs, again")
        differences = _confirmed(sides, found)
        version = kernel_of(without.probe())
        return Trial(
            path, patch, module, version, len(machines), count - sequences * len(machines),
            sequences * len(machines), sides.steps, tuple(differences), tuple(sides.crashes),
        )  # fmt: skip


def _jobs(guest: Guest, sequences: int, seed: int) -> Iterator[ReplayJob]:
    options = ReplayOptions(seconds=_SECONDS, shorten=True, emulated=True)
    texts = [*PLANS, *(sequence(seed, number, guest.saved) for number in range(sequences))]
    for number, text in enumerate(texts):
        yield ReplayJob(str(number), guest.saved, plans.parse(text), options)


def _difference(
    guest: Guest, job: ReplayJob, one: ReplayResult, other: ReplayResult
) -> Difference | None:
    for mine, theirs in zip(one.steps, other.steps, strict=False):
        changes = tuple(_changes(guest.saved, mine, theirs))
        if changes:
            return Difference(guest.name, job.plan, mine.number, mine.step.text, changes)
        if mine.run is not None and mine.run.result == RunEnd.HANG:
            return None  # where it was stopped is an accident
    if one.end == other.end:
        return None
    number = min(len(one.steps), len(other.steps))
    text = job.steps[number].text if number < len(job.steps) else "end"
    end = Change("end", one.host or one.end, other.host or other.end)
    return Difference(guest.name, job.plan, number + 1, text, (end,))


def _changes(saved: Saved, one: ReplayStep, other: ReplayStep) -> Iterator[Change]:
    if one.errno != other.errno:
        yield Change("errno", one.errno, other.errno)
    if one.run is not None and other.run is not None and one.run.result != other.run.result:
        yield Change("run", one.run.result, other.run.result)
    for name in sorted(one.state.keys() | other.state.keys()):
        if one.state.get(name) != other.state.get(name):
            yield _change(saved, name, one.state.get(name), other.state.get(name))
    mine, theirs = one.inside or {}, other.inside or {}
    for name in sorted(mine.keys() & theirs.keys()):
        restless = any(fnmatchcase(name, pattern) for pattern in _RESTLESS)
        if mine[name] != theirs[name] and not restless:
            yield _change(saved, INSIDE + name, mine[name], theirs[name])


def _change(saved: Saved, name: str, without: Any, with_patch: Any) -> Change:
    register = name.rpartition(".")[2]
    l1, l2 = saved.l1(), saved.sregs
    owner = ""
    if register in l1 and register in l2 and l1.content(register) != l2.content(register):
        owner = {l1.get(register): "L1's", l2.get(register): "L2's"}.get(with_patch, "") \
            if isinstance(with_patch, int) else ""  # fmt: skip
    return Change(name, without, with_patch, owner)


def _confirmed(sides: _Sides, found: list[tuple[Guest, ReplayJob, Difference]]) -> list[Difference]:
    # One of each kind, the shortest plan; performed again, and random ones reduced.
    kinds: dict[tuple[str, ...], list[tuple[Guest, ReplayJob, Difference]]] = {}
    for entry in found:
        key = tuple(change.name for change in entry[2].changes)
        kinds.setdefault(key, []).append(entry)
    made = []
    for number, several in enumerate(kinds.values()):
        guest, job, first = min(several, key=lambda entry: len(entry[2].plan))
        again = next(sides.run(guest, [job])) if number < _REPEATED else first
        if again is None:
            continue
        if number < _SHRUNK and job.plan not in PLANS:
            again = _shrunk(sides, guest, job, again)
        made.append(replace(again, plans=len(several)))
    return sorted(made, key=lambda one: (one.inside_only, len(one.plan)))


def _shrunk(sides: _Sides, guest: Guest, job: ReplayJob, wanted: Difference) -> Difference:
    names = {change.name for change in wanted.changes}

    def difference(plan: str) -> ReplayJob:
        return replace(job, steps=plans.parse(plan))

    def show_all(some: Sequence[str]) -> list[bool]:
        seen = sides.run(guest, [difference(plan) for plan in some])
        return [one is not None and names <= {change.name for change in one.changes}
                for one in seen]  # fmt: skip

    return next(sides.run(guest, [difference(shrink(job.plan, show_all))])) or wanted
