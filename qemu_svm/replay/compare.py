"""Comparison of a plan on the model and on a real KVM.

Every step must have the same errno and the same state.  KVM_RUN executes guest code,
which the model does not: state that code can change is not compared after it, and
where the code decided how the run ended (it faulted, halted, never left), the rest of
the plan is not compared; the reason is in ``open``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qemu_svm.model.area import Area
from qemu_svm.model.kvm.vcpu import MmuFault, RunEnd
from qemu_svm.model.observed import (
    ARCH_MSRS,
    SHARED_REGISTERS,
    Observed,
    comparable,
    differences,
    flat,
)
from qemu_svm.model.plans import Step
from qemu_svm.model.simulate import Result, Simulation
from qemu_svm.nested.groups import VMLOAD_MSRS, VMLOAD_SEGMENTS
from qemu_svm.replay.job import ReplayResult, ReplayStep

KERNEL_DECIDES = frozenset(
    {RunEnd.INTERNAL_ERROR, RunEnd.EFAULT, RunEnd.EINVAL, RunEnd.EIO, RunEnd.HANG}
)
"""Ends of KVM_RUN that the model predicts only if guest code has no part in them."""
_NEVER_CODE = frozenset({RunEnd.EFAULT})
_BY_CODE = frozenset(
    {"sregs.cr2", "regs.rbx", "regs.rcx", "regs.rdx", "regs.rsi", "regs.rdi", "regs.rbp"}
    | {f"regs.r{number}" for number in range(8, 16)}
    | {f"regs.dr{number}" for number in (0, 1, 2, 3, 6)}
    | {f"sregs.{name}" for name in ("fs", "gs", "tr", "ldtr")}
    | {f"msr.{name}" for name in (*VMLOAD_MSRS, *ARCH_MSRS)}
    | {f"shared.{name}" for name in (*VMLOAD_SEGMENTS, *SHARED_REGISTERS)}
)
"""State that L2's code can change for L1 as well: #VMEXIT does not load it."""
_REWRITES = {"sregs": "sregs.", "sregs2": "sregs.", "regs": "regs.r", "debugregs": "regs.dr"}
"""Steps after which registers are known again: the start of their names."""
_EVENTS = ("exc_", "int_", "nmi_", "triple_", "smm_pending")
_LOW = 0xFFFF_FFFF
_GIVEN_UP = "EIO"  # what KVM answers to everything once it has given a VM up
_VALID = 1 << 31
_32_BITS = frozenset({"msr.sysenter_cs", "shared.sysenter_cs"})
"""Registers of which the processor keeps 32 bits, regardless of what KVM loaded."""
_DECISIVE = ("cr0", "cr3", "cr4", "efer", "cs", "ss", "ds", "es")
"""Registers that decide, besides RIP, whether an instruction faults."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One difference: ``errno``, the end of a ``run``, or a part of the state."""

    name: str
    model: Any
    kernel: Any


@dataclass(frozen=True, slots=True)
class StepComparison:
    """One step.

    :param open: why nothing after it can be compared; None if it can.
    """

    number: int
    mismatches: tuple[Mismatch, ...]
    open: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All steps that could be compared.

    :param ending: set if the replay ended in a way that the model does not predict.
    """

    steps: tuple[StepComparison, ...]
    ending: Mismatch | None = None

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.ending is None and not any(step.mismatches for step in self.steps)

    def first(self) -> tuple[int, Mismatch] | None:
        """Return the number of the step and its first difference, or None."""
        for step in self.steps:
            if step.mismatches:
                return step.number, step.mismatches[0]
        return None if self.ending is None else (len(self.steps) + 1, self.ending)


def compare(simulation: Simulation, replayed: ReplayResult, *, shortened: bool) -> Comparison:
    """Compare a replay with the simulation of the same plan.

    :param shortened: L2 exited at its first instruction, so its code changed nothing.
    """
    steps: list[StepComparison] = []
    unknown: set[str] = set()
    for result, seen in zip(simulation.results, replayed.steps, strict=False):
        if seen.errno is None and seen.step.name in _REWRITES:
            start = _REWRITES[seen.step.name]
            unknown = {name for name in unknown if not name.startswith(start)}
        elif seen.errno is None and seen.step.name == "events":
            unknown.discard("shadow")
        elif seen.run is not None:
            unknown |= _changed_by_run(simulation, result, shortened=shortened)
        compared = _step(simulation, result, seen, unknown, shortened=shortened)
        steps.append(compared)
        if compared.open is not None or compared.mismatches:
            return Comparison(tuple(steps))
    return Comparison(tuple(steps), _ending(simulation, replayed))


def _changed_by_run(simulation: Simulation, result: Result, *, shortened: bool) -> set[str]:
    # L1's OUT has ended the interrupt shadow; L2's code may have done anything else.
    if shortened and _l2_undisturbed(simulation, result):
        return {"shadow"}
    return {"shadow", *_BY_CODE}


def _step(
    simulation: Simulation, result: Result, seen: ReplayStep, unknown: set[str], *, shortened: bool
) -> StepComparison:
    number = result.number
    model = flat(result.state, split=simulation.kernel.split)
    kernel = {name: value for name, value in seen.state.items() if name not in unknown}
    if any(one.outcome is not None for one in simulation.results[:number]):
        for name in _32_BITS:
            if name in model:
                model[name] &= _LOW
            if name in kernel:
                kernel[name] &= _LOW
    if seen.run is None:
        wrong = [] if result.errno == seen.errno else [Mismatch("errno", result.errno, seen.errno)]
        return StepComparison(number, (*wrong, *_state(model, kernel)))
    assert result.outcome is not None
    ours, theirs = result.outcome.result, seen.run.result
    if theirs == "skipped":
        return StepComparison(number, (), "an emulated host does not survive this KVM_RUN")
    if result.outcome.halted and theirs == RunEnd.HANG:
        return StepComparison(number, (), "the vCPU is halted and no event arrived")
    agrees = run_agrees(ours, theirs)
    if ours is RunEnd.EXIT and theirs not in (RunEnd.EXIT, *_NEVER_CODE):
        # An instruction that cannot be fetched or emulated ends a run as well.
        suspicious = shortened or agrees is False
        agrees = False if suspicious and _undisturbed(simulation, result) else None
    if agrees is False:
        return StepComparison(number, (Mismatch("run", ours, theirs),))
    if agrees is None or ours is not RunEnd.EXIT:
        return StepComparison(number, (), f"the guest's code decided how KVM_RUN ended ({theirs})")
    return StepComparison(number, tuple(_state(model, kernel)))


def run_agrees(outcome: RunEnd, found: str) -> bool | None:
    """Whether the end of KVM_RUN agrees; None if guest code decided it.

    :param outcome: the model's.
    :param found: the real one, as in :class:`qemu_svm.replay.job.RunResult`.
    """
    if outcome is RunEnd.WAITS:
        return found == RunEnd.HANG
    if outcome in (RunEnd.RESET, RunEnd.SMI):
        return None
    if outcome in KERNEL_DECIDES:
        return outcome == found
    if outcome is RunEnd.EXIT and found == RunEnd.EXIT:
        return True
    if outcome is RunEnd.EXIT and found in (RunEnd.INTERNAL_ERROR, RunEnd.EFAULT):
        return False
    return False if found in _NEVER_CODE else None


def _undisturbed(simulation: Simulation, result: Result) -> bool:
    # L2 and L1 continue with the saved state, so each runs its next instruction.
    outcome = result.outcome
    return (
        outcome is not None
        and outcome.l1 is not None
        and _l2_undisturbed(simulation, result)
        and _same(outcome.l1, simulation.saved.l1(), ("rip", "rflags", *_DECISIVE))
    )


def _l2_undisturbed(simulation: Simulation, result: Result) -> bool:
    outcome, saved = result.outcome, simulation.saved
    if outcome is None or outcome.entry is None or outcome.level != "L2":
        return False
    if any(_injects(step.step) for step in simulation.results[: result.number]):
        return False
    # A #VMEXIT has changed the controls, so those before it count.
    before = simulation.start if result.number == 1 else simulation.results[result.number - 2].state
    control = before.areas["ctl_cache"]
    wanted = saved.control()
    intercepted = wanted.get("intercepts") & ~control.get("intercepts") == 0
    return (
        intercepted
        and not control.get("event_inj") & _VALID
        and all(control.get(name) == wanted.get(name) for name in ("nested_ctl", "nested_cr3"))
        and _same(outcome.entry, saved.sregs, _DECISIVE)
        and outcome.entry.get("rip") == saved.regs["rip"]
        and outcome.entry.get("rflags") == saved.regs["rflags"] | 2
    )


def _injects(step: Step) -> bool:
    return step.name == "events" and any(name.startswith(_EVENTS) for name, _ in step.settings)


def _smi(step: Step) -> bool:
    return step.name == "events" and bool(dict(step.settings).get("smm_pending"))


def _same(one: Area, two: Area, names: tuple[str, ...]) -> bool:
    return all(name in one and name in two and one.content(name) == two.content(name)
               for name in names)  # fmt: skip


def _state(model: Observed, kernel: Observed) -> Iterator[Mismatch]:
    for name in differences(model, kernel):
        yield Mismatch(name, model.get(name), comparable(name, kernel[name]))


def _ending(simulation: Simulation, replayed: ReplayResult) -> Mismatch | None:
    # The agent's child, or the host, may have died in the step after the last one.
    if replayed.end == "done":
        return None
    died, results = len(replayed.steps), simulation.results
    if 0 < died < len(results) and results[died].outcome is not None:
        broken = results[died - 1].state.mmu_broken
        if broken is MmuFault.UNINITIALISED:
            return None  # the model says so: the host crashes where KVM must emulate
        if _GIVEN_UP in (replayed.error or "") and any(
            _smi(one.step) for one in results[: died + 1]
        ):
            return None  # enter_smm failed (kvm_vm_dead); the model does not enter SMM by SMI
    return Mismatch("end", "done", replayed.host or replayed.error or replayed.end)
