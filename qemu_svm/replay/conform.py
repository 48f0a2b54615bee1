"""Random sequences on the model and on a real kernel, which must agree.

A sequence that does not agree is repeated, with more time (the machine may be loaded), and
with its answers written step by step (the host may crash); if it still does not, it is reduced
and reported as one command.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import IO, Any

from qemu_svm.errors import PlanError
from qemu_svm.inside.layout import Layout
from qemu_svm.machine import Machine
from qemu_svm.model import plans
from qemu_svm.model.observed import Observed
from qemu_svm.model.saved import Saved, from_vcpu
from qemu_svm.replay.compare import Comparison, Mismatch
from qemu_svm.replay.generate import sequence
from qemu_svm.replay.job import ReplayJob, ReplayOptions, ReplayResult, profile_of
from qemu_svm.replay.memory import RamFile, extract_ram, with_idt
from qemu_svm.replay.replay import against_model, perform
from qemu_svm.replay.shrink import shrink
from qemu_svm.replay.target import Probe, Target

BATCH = 3000
"""Sequences that are given to the agent at once, together for all guests."""
_QUICK, _PATIENT = 0.5, 20.0  # seconds for KVM_RUN
_IRQCHIP = 0.2  # of the sequences have KVM's own local APIC


@dataclass(frozen=True, slots=True)
class Guest:
    """The guest of a sequence: a saved vCPU and its RAM.

    :param place: its name on a command line.
    """

    name: str
    place: str
    saved: Saved
    ram: RamFile


def read_guest(machine: Machine, ram: Path) -> Guest:
    """Return the guest of a stream: its first vCPU, and its RAM.

    :param ram: file to write the RAM into.
    :raises PlanError: the stream has no vCPU that could be read.
    :raises StreamError: the RAM is damaged or missing.
    """
    path = machine.stream.source.path
    if not machine.vcpus:
        raise PlanError(f"{path} has no readable vCPU")
    name = Path(path).name.partition(".mig")[0]
    file = extract_ram(machine, str(ram), reset_page=True)
    return Guest(name, path, with_idt(file.read, from_vcpu(machine.vcpus[0])), file)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A sequence on which model and kernel differ.

    :param shrunk: the shortest plan that still shows it.
    """

    guest: Guest
    number: int
    plan: str
    shrunk: str
    options: ReplayOptions
    step: int
    mismatch: Mismatch


@dataclass
class Report:
    """The result of a run.

    :param layout: that of the kernel, if its memory was compared; else None.
    :param crashes: guest, plan and last message of sequences that crashed or hung the host.
    :param open: why sequences could not be compared to their end.
    :param repeated: how many were repeated.
    """

    probe: Probe
    profile: str
    seed: int
    layout: Layout | None = None
    sequences: int = 0
    steps: int = 0
    compared: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    open: Counter[str] = field(default_factory=Counter)
    crashes: list[tuple[str, str, str]] = field(default_factory=list)
    repeated: int = 0
    disagreements: list[Disagreement] = field(default_factory=list)


def job_of(guest: Guest, seed: int, number: int, *, emulated: bool) -> ReplayJob:
    """Return one sequence of a run."""
    options = ReplayOptions(
        seconds=_QUICK,
        irqchip=Random(f"{seed}:{number}:irqchip").random() < _IRQCHIP,
        shorten=True,
        emulated=emulated,
        quick=True,
    )
    plan = sequence(seed, number, guest.saved)
    return ReplayJob(str(number), guest.saved, plans.parse(plan), options)


def conform(
    target: Target,
    guests: Sequence[Guest],
    *,
    sequences: int,
    seed: int,
    first: int = 0,
    emulated: bool,
    inside: bool = False,
    record: IO[str] | None = None,
    progress: Callable[[Report], None] = lambda _report: None,
) -> Report:
    """Run sequences ``first`` to ``first + sequences - 1`` of a seed, in turn on each guest.

    :param emulated: the host's processor is emulated.
    :param inside: compare with the kernel's memory as well.
    :param record: sequences are written to it as recordings, one per line.
    """
    probe = target.probe()
    report = Report(probe, profile_of(probe).row, seed, target.layout() if inside else None)
    for start in range(first, first + sequences, BATCH):
        numbers = range(start, min(start + BATCH, first + sequences))
        for turn, guest in enumerate(guests):
            mine = [number for number in numbers if number % len(guests) == turn]
            jobs = [job_of(guest, seed, number, emulated=emulated) for number in mine]
            results = perform(target, guest.ram, jobs, probe, report.layout)
            for job, result in zip(jobs, results, strict=True):
                _judge(target, guest, job, result, report)
                if record is not None:
                    record.write(json.dumps(recording(guest, job, result)) + "\n")
                progress(report)
    return report


def _judge(
    target: Target, guest: Guest, job: ReplayJob, result: ReplayResult, report: Report
) -> None:
    _, comparison = against_model(job, guest.ram, report.probe, result)
    report.sequences += 1
    report.steps += len(result.steps)
    report.compared += len(comparison.steps)
    report.ends[result.end] += 1
    if result.host:
        report.crashes.append((guest.name, job.plan, result.host.splitlines()[0]))
    report.open.update(step.open for step in comparison.steps if step.open)
    if comparison.equal:
        return
    report.repeated += 1
    again = replace(job, options=replace(job.options, seconds=_PATIENT, quick=False))
    (comparison,) = _compared(target, guest, [again], report)
    found = comparison.first()
    if found is None:
        return
    shrunk = _shrunk(target, guest, again, report, found[1])
    report.disagreements.append(
        Disagreement(guest, int(job.name), job.plan, shrunk, job.options, *found)
    )


def _compared(
    target: Target, guest: Guest, jobs: Sequence[ReplayJob], report: Report
) -> list[Comparison]:
    results = perform(target, guest.ram, jobs, report.probe, report.layout)
    return [
        against_model(job, guest.ram, report.probe, result)[1]
        for job, result in zip(jobs, results, strict=True)
    ]


def _shrunk(target: Target, guest: Guest, job: ReplayJob, report: Report, wanted: Mismatch) -> str:
    def show_all(some: Sequence[str]) -> list[bool]:
        jobs = [
            replace(job, name=str(number), steps=plans.parse(plan))
            for number, plan in enumerate(some)
        ]
        found = [each.first() for each in _compared(target, guest, jobs, report)]
        return [each is not None and each[1].name == wanted.name for each in found]

    return shrink(job.plan, show_all)


def recording(guest: Guest, job: ReplayJob, result: ReplayResult) -> dict[str, Any]:
    """Return one sequence in the format of recordings, which have only what changed."""
    before: Observed = {}
    results = []
    for seen in result.steps:
        state = {k: v for k, v in seen.state.items() if before.get(k) != v}
        line: dict[str, Any] = {"state": state}
        gone = sorted(set(before) - set(seen.state))
        if gone:
            line["gone"] = gone
        if seen.run is None:
            line["errno"] = seen.errno
        else:
            line["run"] = "IO" if seen.run.result == "exit" else seen.run.result
        results.append(line)
        before = seen.state
    entry: dict[str, Any] = {"id": job.name, "guest": guest.name, "plan": job.plan}
    if job.options.irqchip:
        entry["irqchip"] = True
    return entry | {"results": results} | ({} if result.end == "done" else {"end": result.end})
