"""The same plans on a kernel with a patch and without it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from qemu_svm.diagnosis.oops import Oops
from qemu_svm.errors import EnvironmentFault, LabError
from qemu_svm.lab.box.box import Box
from qemu_svm.lab.box.share import Share
from qemu_svm.lab.kvm import InBox
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import build, kernels
from qemu_svm.lab.suites.cache import Built
from qemu_svm.lab.trial.differ import Difference, kinds, runs_again
from qemu_svm.lab.trial.patches import Patch
from qemu_svm.lab.trial.sides import Crash, Sides
from qemu_svm.lab.trial.subject import Subject
from qemu_svm.lab.trial.workshop import ROOT, Module, place_of
from qemu_svm.machine import Machine
from qemu_svm.model import plans
from qemu_svm.replay.conform import Guest, read_guest
from qemu_svm.replay.generate import sequence
from qemu_svm.replay.job import ReplayJob, ReplayOptions, kernel_of
from qemu_svm.replay.shrink import shrink
from qemu_svm.results import Result

Own = tuple[Path, Path]
Found = tuple[Guest, ReplayJob, Difference]

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
    (
        "cpuid,sregs,nested:@0x570=0x20002,nested:@0x548=0x8000000000,nested:@0x4d0=0x8000,"
        "nested:@0x10/4=0,nested:flags=0x10,nested,regs,run"
    ),
    "cpuid,sregs,nested,cpuid:nosvm,regs,run",
    "cpuid,sregs,nested,events:smm=1:flags=0x8,regs",
    "cpuid,sregs,nested,msrs:efer=0x500,regs",
    "cpuid:nosvm,sregs,nested",
    "cpuid,sregs,nested,get:size=64,nested:size=128,regs,run",
    (
        "cpuid,sregs,nested:flags=0x103,nested:flags=0x100,nested:flags=0x1,nested:flags=0x0,"
        "nested,nested:flags=0x103,nested:flags=0x1,nested,regs"
    ),
    "cpuid,sregs,nested:flags=0x103,events:smm=1:flags=0x8,regs",
    "cpuid,sregs,nested:flags=0x103,msrs:efer=0x500,regs",
    "cpuid,sregs,nested,regs,msrs,run,nested,sregs,regs,run",
    "cpuid,sregs,nested,regs,msrs,run,run",
    "cpuid,sregs:l1,nested,sregs,nested:flags=0x103,regs,msrs,run,run",
)
"""What every trial performs: QEMU's order and the selftests', L1's registers first and last,
a second call that succeeds and one that fails, after a run too, GIF clear, a pending VMRUN, each
check of the argument, leaving guest mode by a call, by SMM and by EFER, also with a VMRUN pending,
and L1's own VMRUN after the exit (:func:`runs_again`)."""

_SECONDS = 1.0
_PATIENT = 10.0  # for what differs, again
_REPEATED = 40
_SHRUNK = 3  # of the kinds of differences, if they come after more steps than:
_SHORT = 3
_BATCH = 10  # random sequences
_LIMIT = 40.0  # seconds for random sequences, unless their number is given
_MANY = 100
_WATCHED = ("softlockup_panic=1", "watchdog_thresh=20")
"""On the kernel's command line: a patched kernel that loops ends with a trace of where, after
40 seconds: a box on a busy machine may stand still for less."""


@dataclass(frozen=True, slots=True, repr=False)
class Trial(Result):
    """A patch on trial.

    :param path: of the patch, or what else is on trial.
    :param patch: None if modules or a kernel are on trial.
    :param kernel: version of the kernel without it; ``other`` of the one with it, if that is
        another kernel.
    :param guests, plans, sequences: how many were tried.
    :param steps: ioctls and runs that were compared.
    :param differences: what ioctls show first, then early steps and short plans.
    :param same: parts of the state that never differed, ``inside.`` those in memory.
    :param warnings: what the kernel with the patch warned of (WARN), and the other did not.
    :param places: file and line of each crash with the patch, by its words.
    :param stopped: whether a kernel crashed so often that plans were left out.
    :param inside: whether the kernels' memory was compared.
    """

    verb: ClassVar[str] = "lab_patch"
    path: str
    patch: Patch | None
    module: Module
    kernel: str
    guests: int
    plans: int
    sequences: int
    steps: int
    differences: tuple[Difference, ...]
    crashes: tuple[Crash, ...]
    same: tuple[str, ...] = ()
    warnings: tuple[Oops, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)
    stopped: bool = False
    other: str = ""
    inside: bool = True

    @property
    def good(self) -> bool:
        """Whether nothing differs, and no kernel crashed or warned."""
        return not self.differences and not self.crashes and not self.warnings


def put_on_trial(
    subject: Subject,
    machines: Sequence[Machine],
    *,
    kernel: str,
    sequences: int | None = None,
    seed: int = 1,
    npt: bool = True,
    mirror: str | None = None,
    progress: Progress = SILENT,
) -> Trial:
    """Build kvm-amd with a patch, and perform plans with it and without it.

    :param subject: the patch, or modules, a tree, a kernel.
    :param machines: the captures to restore.
    :param kernel: of the box, see :func:`qemu_svm.lab.suites.kernels.wanted`.
    :param sequences: number of random plans for each capture; None for as many as 40
        seconds have, at most 100.
    :raises PatchRefused: the patch does not apply, or does not compile.
    :raises LabError: a box cannot be started.
    """
    with ExitStack() as boxes, ExitStack() as stack:
        held = stack.enter_context(
            build.using(kernels.wanted(kernel), mirror=mirror, progress=progress)
        )
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trial")))

        def boot(modules: Mapping[str, bytes], own: Own | None = None) -> Callable[[Share], Box]:
            return lambda share: Box(
                kernel=kernel, npt=npt, share=share, mirror=mirror, modules=modules, own=own,
                words=_WATCHED,
            )  # fmt: skip

        without = boxes.enter_context(InBox(boot({})))
        # At the end, boxes are stopped, then threads end, then the boxes' files go.
        pool = stack.enter_context(ThreadPoolExecutor(2, "side"))
        stack.callback(without.stop)
        own = pool.submit(_ready, without)  # it boots while the module is built
        guests = []
        for number, machine in enumerate(machines):
            guest = read_guest(machine, folder / f"ram{number}")
            stack.enter_context(closing(guest.ram))
            guests.append(guest)
        module = subject.made(held, progress=progress)
        progress.step("starting two boxes")
        with_patch = boxes.enter_context(
            InBox(boot(module.files, subject.own), module.types, foreign=True)
        )
        stack.callback(with_patch.stop)
        try:
            other, theirs = _ready(with_patch)
        except LabError as error:
            raise LabError(f"with {subject.name}: {error.what}", hint=error.hint) from error
        version, ours = own.result()
        inside = ours and theirs
        sides = Sides(without, with_patch, pool, inside=inside)
        found: list[Found] = []
        for number, guest in enumerate(guests):
            progress.step(f"plans of {guest.name}", number, len(guests))
            found += _performed(sides, guest, list(_jobs(guest, PLANS)))
        if found:
            progress.note(f"{len(found)} plans differ")
        done = 0
        for number, guest in enumerate(guests):
            progress.step(f"random sequences of {guest.name}", number, len(guests))
            count, more = _random(sides, guest, sequences, seed, _LIMIT / len(guests))
            done += count
            found += more
        progress.step("what differs, again")
        differences = _confirmed(sides, found)
        _confirm_hangs(sides, guests)
        stopped = sides.spent
        warned = {one.functions[:1] for one in without.warnings()}
        return Trial(
            subject.name, subject.patch, module, version, len(guests), len(PLANS), done,
            sides.tally.steps,
            tuple(differences), tuple(sides.crashes), tuple(sides.tally.same),
            tuple(replace(one, place=one.place.removeprefix(ROOT))
                  for one in with_patch.warnings() if one.functions[:1] not in warned),
            _places(held, module, sides.crashes), stopped, other if other != version else "",
            inside,
        )  # fmt: skip


def _ready(side: InBox) -> tuple[str, bool]:
    # The version of its kernel, and whether that says where its types are.
    version = kernel_of(side.probe())
    try:
        side.layout()
    except EnvironmentFault:
        return version, False
    return version, True


def _performed(sides: Sides, guest: Guest, jobs: Sequence[ReplayJob]) -> list[Found]:
    return [
        (guest, job, one)
        for job, one in zip(jobs, sides.run(guest, jobs), strict=False)
        if one is not None
    ]


def _random(
    sides: Sides, guest: Guest, wanted: int | None, seed: int, limit: float
) -> tuple[int, list[Found]]:
    # Random sequences in batches; how many, and what differed.
    found: list[Found] = []
    end = time.monotonic() + limit
    number, last = 0, _MANY if wanted is None else wanted
    while number < last and not sides.spent and (wanted is not None or time.monotonic() < end):
        numbers = range(number, min(number + _BATCH, last))
        texts = [sequence(seed, one, guest.saved) for one in numbers]
        found += _performed(sides, guest, list(_jobs(guest, texts)))
        number = numbers.stop
    return number, found


def _confirm_hangs(sides: Sides, guests: Sequence[Guest]) -> None:
    # A kernel that hung once, and not again at the same plan, was a box that stood still.
    for crash in [one for one in sides.crashes if one.hung]:
        if sides.spent:
            return
        guest = next(one for one in guests if one.name == crash.guest)
        known = len(sides.crashes)
        list(sides.run(guest, list(_jobs(guest, [crash.plan]))))
        if len(sides.crashes) == known:
            sides.crashes.remove(crash)


def _places(kernel: Built, module: Module, crashes: Sequence[Crash]) -> dict[str, str]:
    # Function, file and line of each crash with the patch.
    found = {}
    for crash in crashes:
        if crash.with_patch and crash.trouble and crash.words not in found:
            found[crash.words] = place_of(kernel, module, crash.trouble)
    return {words: place for words, place in found.items() if place}


def _jobs(guest: Guest, texts: Sequence[str]) -> Iterator[ReplayJob]:
    for number, text in enumerate(texts):
        options = ReplayOptions(
            seconds=_SECONDS, shorten=True, vmrun=runs_again(text), emulated=True
        )
        yield ReplayJob(str(number), guest.saved, plans.parse(text), options)


def _confirmed(sides: Sides, found: Sequence[Found]) -> list[Difference]:
    # One of each kind, the shortest plan; performed again, and reduced.
    made: list[Difference] = []
    for number, kind in enumerate(kinds(found)):
        guest, job, first = kind[0]
        again: Difference | None = first
        if number < _REPEATED and not sides.spent:
            job = replace(job, options=replace(job.options, seconds=_PATIENT))
            again = next(sides.run(guest, [job]), first)
        elif first.hung:
            continue  # the machine may have been busy
        if again is None or not again.names & first.names:
            continue
        if number < _SHRUNK and again.step > _SHORT and not sides.spent:
            again = _shrunk(sides, guest, job, again)
        made.append(replace(again, plans=len(kind)))
    return sorted(made, key=lambda one: one.order)


def _shrunk(sides: Sides, guest: Guest, job: ReplayJob, wanted: Difference) -> Difference:
    def difference_of(plan: str) -> ReplayJob:
        options = replace(job.options, vmrun=runs_again(plan))
        return replace(job, steps=plans.parse(plan), options=options)

    def show_all(some: Sequence[str]) -> list[bool]:
        seen = list(sides.run(guest, [difference_of(plan) for plan in some]))
        seen += [None] * (len(some) - len(seen))
        return [one is not None and one.is_like(wanted) for one in seen]

    return next(sides.run(guest, [difference_of(shrink(wanted.plan, show_all))]), None) or wanted
