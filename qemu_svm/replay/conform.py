"""Random sequences on the model and on a real kernel: they must agree.

Every sequence that does not is tried again with more time (a loaded machine is
slow), and if it still disagrees it is shrunk and told as one command.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import IO, Any

from qemu_svm.model import plan as plans
from qemu_svm.model.observed import Observed
from qemu_svm.model.saved import Saved
from qemu_svm.model.simulate import Simulation, simulate
from qemu_svm.replay.compare import Comparison, Mismatch, compare
from qemu_svm.replay.generate import sequence
from qemu_svm.replay.memory import Ram, can_shorten
from qemu_svm.replay.replay import Options, Replayed, Trial, host_of, job, profile, result
from qemu_svm.replay.shrink import shrink
from qemu_svm.replay.target import Probe, Target

BATCH = 600
_QUICK, _PATIENT = 0.5, 5.0  # seconds for KVM_RUN
_IRQCHIP = 0.2  # of the sequences have KVM's own local APIC


@dataclass(frozen=True, slots=True)
class Guest:
    """What sequences are tried on: a saved vCPU and its RAM.

    :param place: how to name it on a command line.
    """

    name: str
    place: str
    saved: Saved
    ram: Ram

    @property
    def shortened(self) -> bool:
        """Whether L2 leaves at its next instruction."""
        return can_shorten(self.ram.read, self.saved)


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A sequence on which model and kernel differ, as short as it gets."""

    guest: Guest
    number: int
    plan: str
    shrunk: str
    options: Options
    step: int
    mismatch: Mismatch


@dataclass
class Report:
    """What a run came to.

    :param crashes: guest, plan and last words where the host kernel died or hung.
    :param open: why sequences could not be compared to their end.
    :param repeated: how many were tried a second time.
    """

    probe: Probe
    profile: str
    seed: int
    sequences: int = 0
    steps: int = 0
    compared: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    open: Counter[str] = field(default_factory=Counter)
    crashes: list[tuple[str, str, str]] = field(default_factory=list)
    repeated: int = 0
    disagreements: list[Disagreement] = field(default_factory=list)


def trial(guest: Guest, seed: int, number: int, *, emulated: bool) -> Trial:
    """One sequence of a run."""
    options = Options(
        seconds=_QUICK,
        irqchip=Random(f"{seed}:{number}:irqchip").random() < _IRQCHIP,
        shorten=True,
        emulated=emulated,
    )
    plan = sequence(seed, number, guest.saved)
    return Trial(str(number), guest.saved, plans.parse(plan), options)


def modelled(one: Trial, guest: Guest, probe: Probe) -> Simulation:
    """The same sequence on the model."""
    return simulate(
        profile(probe), guest.saved, one.steps, host=host_of(probe, one.options),
        backed=guest.ram.backed,
    )  # fmt: skip


def conform(
    target: Target,
    guests: Sequence[Guest],
    *,
    sequences: int,
    seed: int,
    first: int = 0,
    emulated: bool,
    record: IO[str] | None = None,
    progress: Callable[[Report], None] = lambda _report: None,
) -> Report:
    """Try sequences ``first`` to ``first + sequences - 1`` of a seed, in turn on each guest.

    :param emulated: the host's processor is emulated.
    :param record: sequences are written there as recordings, one a line.
    """
    probe = target.probe()
    report = Report(probe, profile(probe).name, seed)
    for start in range(first, first + sequences, BATCH):
        numbers = range(start, min(start + BATCH, first + sequences))
        for turn, guest in enumerate(guests):
            mine = [number for number in numbers if number % len(guests) == turn]
            trials = [trial(guest, seed, number, emulated=emulated) for number in mine]
            for one, replayed in _performed(target, guest, trials, probe):
                _judge(target, guest, one, replayed, report)
                if record is not None:
                    record.write(json.dumps(recording(guest, one, replayed)) + "\n")
                progress(report)
    return report


def _performed(
    target: Target, guest: Guest, trials: Sequence[Trial], probe: Probe
) -> Iterator[tuple[Trial, Replayed]]:
    jobs = [job(one, guest.ram, probe) for one in trials]
    for one, performed in zip(trials, target.perform(guest.ram, jobs), strict=True):
        yield one, result(one, performed)


def _judge(target: Target, guest: Guest, one: Trial, replayed: Replayed, report: Report) -> None:
    comparison = compare(modelled(one, guest, report.probe), replayed, shortened=guest.shortened)
    report.sequences += 1
    report.steps += len(replayed.steps)
    report.compared += len(comparison.steps)
    report.ends[replayed.end] += 1
    if replayed.host:
        report.crashes.append((guest.name, text_of(one), replayed.host.splitlines()[0]))
    report.open.update(step.open for step in comparison.steps if step.open)
    if comparison.equal:
        return
    report.repeated += 1
    again = replace(one, options=replace(one.options, seconds=_PATIENT))
    (comparison,) = _compared(target, guest, [again], report.probe)
    found = comparison.first()
    if found is None:
        return
    plan = text_of(one)
    report.disagreements.append(
        Disagreement(guest, int(one.name), plan, _shrunk(target, guest, again, report.probe,
                     found[1]), one.options, *found)
    )  # fmt: skip


def _compared(
    target: Target, guest: Guest, trials: Sequence[Trial], probe: Probe
) -> list[Comparison]:
    return [
        compare(modelled(one, guest, probe), replayed, shortened=guest.shortened)
        for one, replayed in _performed(target, guest, trials, probe)
    ]


def _shrunk(target: Target, guest: Guest, one: Trial, probe: Probe, wanted: Mismatch) -> str:
    def show_all(some: Sequence[str]) -> list[bool]:
        trials = [
            replace(one, name=str(number), steps=plans.parse(plan))
            for number, plan in enumerate(some)
        ]
        found = [each.first() for each in _compared(target, guest, trials, probe)]
        return [each is not None and each[1].name == wanted.name for each in found]

    return shrink(text_of(one), show_all)


def text_of(one: Trial) -> str:
    """The plan as it is written on a command line."""
    return ",".join(step.text for step in one.steps)


def recording(guest: Guest, one: Trial, replayed: Replayed) -> dict[str, Any]:
    """One sequence in the format of the recorded ones: only what changed is kept."""
    before: Observed = {}
    results = []
    for seen in replayed.steps:
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
    entry: dict[str, Any] = {"id": one.name, "guest": guest.name, "plan": text_of(one)}
    if one.options.irqchip:
        entry["irqchip"] = True
    return entry | {"results": results} | ({} if replayed.end == "done" else {"end": replayed.end})
