"""Comparison of a plan on the model and on a real KVM.

Every step must have the same errno and the same state.  KVM_RUN executes guest code,
which the model does not: state that code can change is not compared after it, and
where the code decided how the run ended (it faulted, halted, never left), the rest of
the plan is not compared; the reason is in ``open``.  A shortened replay has known code
wherever the vCPU may continue, so that runs of L1, and of an L2 that does not exit, are
compared as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qemu_svm.inside.beside import differences as differences_inside
from qemu_svm.inside.lazy import FRESH, Circumstances, left_in_vmcbs, places
from qemu_svm.inside.view import Inside
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
from qemu_svm.model.simulate import Result, Simulation, Snapshot
from qemu_svm.nested.groups import VMLOAD_MSRS, VMLOAD_SEGMENTS
from qemu_svm.replay.job import ReplayResult, ReplayStep
from qemu_svm.replay.memory import STUB_BYTES, handlers
from qemu_svm.x86.msrs import NUMBERS
from qemu_svm.x86.registers import RFLAGS

KERNEL_DECIDES = frozenset(
    {RunEnd.INTERNAL_ERROR, RunEnd.EFAULT, RunEnd.EINVAL, RunEnd.EIO, RunEnd.HANG}
)
"""Ends of KVM_RUN that the model predicts only if guest code has no part in them."""
INSIDE = "inside."
"""Start of the names of differences in the kernel's memory."""
_NEVER_CODE = frozenset({RunEnd.EFAULT})
_BY_CODE = frozenset(
    {
        "sregs.cr2",
        "sregs.cr8",
        "regs.rbx",
        "regs.rcx",
        "regs.rdx",
        "regs.rsi",
        "regs.rdi",
        "regs.rbp",
    }
    | {f"regs.r{number}" for number in range(8, 16)}
    | {f"regs.dr{number}" for number in (0, 1, 2, 3, 6)}
    | {f"sregs.{name}" for name in ("fs", "gs", "tr", "ldtr")}
    | {f"msr.{name}" for name in (*VMLOAD_MSRS, *ARCH_MSRS)}
    | {f"shared.{name}" for name in (*VMLOAD_SEGMENTS, *SHARED_REGISTERS)}
)
"""State that L2's code can change for L1 as well: #VMEXIT does not load it."""
_BY_STUB = frozenset(
    {"shadow", "regs.rip", *(f"regs.{name}" for name in ("rax", "rbx", "rcx", "rdx"))}
)
"""State that the code of a shortened replay changes: it may execute CPUID."""
_BY_EXCEPTION = frozenset(
    {"regs.rsp", "regs.rflags", "regs.dr6", "sregs.cr2", "sregs.cs", "sregs.ss"}
)
"""What the delivery of an exception changes besides."""
_IN_CTL = frozenset(
    f"ctl.{name}"
    for name in ("event_inj", "event_inj_err", "int_ctl", "int_vector", "int_state", "next_rip")
)
"""Control fields that KVM takes back from vmcb02 after L2 has run."""
_REWRITES = {"sregs": "sregs.", "sregs2": "sregs.", "regs": "regs.r", "debugregs": "regs.dr"}
"""Steps after which registers are known again: the start of their names."""
_EVENTS = ("exc_", "int_", "nmi_", "triple_", "smm_pending")
_LOW = 0xFFFF_FFFF
_VALID = 1 << 31
_32_BITS = frozenset({"msr.sysenter_cs", "shared.sysenter_cs"})
"""Registers of which the processor keeps 32 bits, regardless of what KVM loaded."""
_RF = RFLAGS.mask("RF")
"""Code may clear it: KVM does so when it skips an instruction (``x86_emulate_instruction``)."""
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
    """One step; number 0 is the fresh vCPU, which is compared in the kernel's memory only.

    :param open: why nothing after it can be compared; None if it can.
    :param stays: L2 did not exit to L1, so the rest must be compared with a simulation in
        which it does not.
    """

    number: int
    mismatches: tuple[Mismatch, ...]
    open: str | None = None
    stays: bool = False


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

    @property
    def open(self) -> StepComparison | None:
        """The last step, if the rest could not be compared."""
        return self.steps[-1] if self.steps and self.steps[-1].open else None

    @property
    def stays(self) -> int | None:
        """The number of a run in which L2 did not exit, unlike in the simulation."""
        return self.steps[-1].number if self.steps and self.steps[-1].stays else None

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
    left: set[str] = set()
    ran = code = False
    if replayed.start is not None:
        wrong = tuple(_inside(simulation, simulation.start, replayed.start, FRESH))
        if wrong:
            return Comparison((StepComparison(0, wrong),))
    for result, seen in zip(simulation.results, replayed.steps, strict=False):
        if seen.errno is None and seen.step.name in _REWRITES:
            start = _REWRITES[seen.step.name]
            written = {name for name in unknown if name.startswith(start)}
            unknown -= written
            left |= left_in_vmcbs(written)
        elif seen.errno is None and seen.step.name == "events":
            unknown.discard("shadow")
        elif seen.run is not None:
            changed = _changed_by_run(simulation, result, seen, shortened=shortened)
            unknown |= changed
            ran, code = True, code or bool(changed - {"shadow"})
        circumstances = Circumstances(ran, code, places(unknown) | left)
        compared = _step(simulation, result, seen, unknown, circumstances, shortened=shortened)
        steps.append(compared)
        if compared.open is not None or compared.mismatches or compared.stays:
            return Comparison(tuple(steps))
    return Comparison(tuple(steps), _ending(simulation, replayed))


def _changed_by_run(
    simulation: Simulation, result: Result, seen: ReplayStep, *, shortened: bool
) -> set[str]:
    assert seen.run is not None
    outcome = result.outcome
    if outcome is None or outcome.result is RunEnd.SHUTDOWN:
        return set()
    if seen.run.at_stop and outcome.result in (RunEnd.L1, RunEnd.L2):
        changed = {*_BY_STUB, *_IN_CTL} if shortened else {*_BY_CODE, *_BY_STUB, *_IN_CTL}
        in_handler = seen.state["regs.rip"] in handlers(simulation.saved.sregs)
        return changed | _BY_EXCEPTION if in_handler else changed
    # L1's OUT has ended the interrupt shadow; L2's code may have done anything else.
    if shortened and _l2_undisturbed(simulation, result):
        return {"shadow"}
    return {"shadow", *_BY_CODE}


def _step(
    simulation: Simulation,
    result: Result,
    seen: ReplayStep,
    unknown: set[str],
    circumstances: Circumstances,
    *,
    shortened: bool,
) -> StepComparison:
    number = result.number
    if result.state.dead or seen.killed:
        return _dead(result, seen)
    model = flat(result.state, split=simulation.kernel.split)
    kernel = {name: value for name, value in seen.state.items() if name not in unknown}
    if any(one.outcome is not None for one in simulation.results[:number]):
        for name in _32_BITS:
            if name in model:
                model[name] &= _LOW
            if name in kernel:
                kernel[name] &= _LOW
    if "regs.rip" in unknown:  # code was executed since KVM_SET_REGS
        for values in (model, kernel):
            if "regs.rflags" in values:
                values["regs.rflags"] &= ~_RF
    inside = _inside(simulation, result.state, seen.inside, circumstances)
    if seen.refused_msr is not None and seen.refused_msr not in NUMBERS.values():
        words = f"KVM refuses MSR {seen.refused_msr:#x}, which the model does not have"
        return StepComparison(number, (), words)
    if seen.run is None:
        wrong = [] if result.errno == seen.errno else [Mismatch("errno", result.errno, seen.errno)]
        wrong += [*_state(model, kernel), *inside]
        return StepComparison(number, tuple(wrong))
    ended = _run_end(simulation, result, seen, shortened=shortened)
    return ended or StepComparison(number, (*_state(model, kernel), *inside))


def _run_end(
    simulation: Simulation, result: Result, seen: ReplayStep, *, shortened: bool
) -> StepComparison | None:
    """Judge how a run ended; None if the state has to agree as well."""
    assert result.outcome is not None
    assert seen.run is not None
    number, ours, theirs = result.number, result.outcome.result, seen.run.result
    if theirs == "skipped":
        return StepComparison(number, (), "an emulated host does not survive this KVM_RUN")
    if result.outcome.halted and theirs == RunEnd.HANG:
        return StepComparison(number, (), "the vCPU is halted and no event arrived")
    if seen.run.at_stop and ours in (RunEnd.EXIT, RunEnd.L1, RunEnd.L2):
        return _at_stop(simulation, result, seen, shortened=shortened)
    agrees = run_agrees(ours, theirs)
    if ours is RunEnd.EXIT and theirs not in (RunEnd.EXIT, *_NEVER_CODE):
        # An instruction that cannot be fetched or emulated ends a run as well.
        suspicious = shortened or agrees is False
        agrees = False if suspicious and _undisturbed(simulation, result) else None
    if agrees is False:
        return StepComparison(number, (Mismatch("run", ours, theirs),))
    if agrees is None or ours not in (RunEnd.EXIT, RunEnd.SHUTDOWN):
        return StepComparison(number, (), f"{_CODE} ({theirs})")
    return None


def _dead(result: Result, seen: ReplayStep) -> StepComparison:
    # A VM that KVM has killed answers EIO to everything; its state cannot be read.
    words = {True: "killed", False: "alive"}
    wrong = []
    if result.state.dead is not seen.killed:
        wrong.append(Mismatch("vm", words[result.state.dead], words[seen.killed]))
    elif seen.run is not None and result.outcome is not None:
        if result.outcome.result != seen.run.result:
            wrong.append(Mismatch("run", result.outcome.result, seen.run.result))
    elif result.errno != seen.errno:
        wrong.append(Mismatch("errno", result.errno, seen.errno))
    smi = not result.state.dead and seen.run is not None and seen.run.result == RunEnd.EIO
    if smi and result.outcome is not None and result.outcome.result is RunEnd.SMI:
        # enter_smm failed (kvm_vm_dead); the model does not enter SMM by SMI.
        return StepComparison(result.number, (), "KVM could not enter SMM, and killed the VM")
    return StepComparison(result.number, tuple(wrong))


def _at_stop(
    simulation: Simulation, result: Result, seen: ReplayStep, *, shortened: bool
) -> StepComparison | None:
    """Judge a run that the replay's OUT ended; None if the state decides.

    In guest mode it was L2's: nothing has to be wrong, as long as L2 did not have to exit.
    """
    number, outcome = result.number, result.outcome
    assert outcome is not None
    assert outcome.entry is not None
    ours, theirs = outcome.result, RunEnd.L2 if seen.in_guest_mode else RunEnd.EXIT
    if ours is theirs is RunEnd.EXIT:
        return None
    if ours is RunEnd.EXIT and not (shortened and _undisturbed(simulation, result)):
        return StepComparison(number, (), stays=True)
    if ours is RunEnd.EXIT or (ours is RunEnd.L2) is not (theirs is RunEnd.L2):
        return StepComparison(number, (Mismatch("run", ours, theirs),))
    rip, begun = seen.state["regs.rip"], outcome.entry.get("rip")
    stubs = begun <= rip < begun + STUB_BYTES or rip in handlers(simulation.saved.sregs)
    if shortened and stubs:
        return None
    return StepComparison(number, (), f"{_CODE} (in {outcome.level})")


_CODE = "the guest's code decided how KVM_RUN ended"
_IMPOSSIBLE = {
    RunEnd.EXIT: frozenset({RunEnd.INTERNAL_ERROR, *_NEVER_CODE}),
    RunEnd.SHUTDOWN: frozenset({RunEnd.HANG, *_NEVER_CODE}),
    RunEnd.L1: _NEVER_CODE,
    RunEnd.L2: _NEVER_CODE,
}
"""Ends that no code of the guest can bring about, by the end that the model predicts."""


def run_agrees(outcome: RunEnd, found: str) -> bool | None:
    """Whether the end of KVM_RUN agrees; None if guest code decided it.

    :param outcome: the model's.
    :param found: the real one, as in :class:`qemu_svm.replay.job.RunResult`.
    """
    if outcome is RunEnd.WAITS or outcome in KERNEL_DECIDES:
        return found == (RunEnd.HANG if outcome is RunEnd.WAITS else outcome)
    wrong = _IMPOSSIBLE.get(outcome, frozenset())
    if outcome in (RunEnd.EXIT, RunEnd.SHUTDOWN) and found == outcome:
        return True
    return False if found in wrong else None


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
    if _moved(simulation, result.number):
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


def _moved(simulation: Simulation, number: int) -> bool:
    # Whether code has run since REGS were set: RIP is behind what it executed.
    for one in reversed(simulation.results[: number - 1]):
        if one.step.name == "regs":
            return False
        if one.outcome is not None and one.outcome.result in (RunEnd.L1, RunEnd.L2):
            return True
    return False


def _injects(step: Step) -> bool:
    return step.name == "events" and any(name.startswith(_EVENTS) for name, _ in step.settings)


def _same(one: Area, two: Area, names: tuple[str, ...]) -> bool:
    return all(name in one and name in two and one.content(name) == two.content(name)
               for name in names)  # fmt: skip


def _state(model: Observed, kernel: Observed) -> Iterator[Mismatch]:
    for name in differences(model, kernel):
        yield Mismatch(name, model.get(name), comparable(name, kernel[name]))


def _inside(
    simulation: Simulation, state: Snapshot, seen: Inside | None, circumstances: Circumstances
) -> Iterator[Mismatch]:
    for name, ours, theirs in differences_inside(
        state, simulation.kernel, seen or {}, circumstances
    ):
        yield Mismatch(INSIDE + name, ours, theirs)


def _ending(simulation: Simulation, replayed: ReplayResult) -> Mismatch | None:
    # The agent's child, or the host, may have died in the step after the last one.
    if replayed.end == "done":
        return None
    died, results = len(replayed.steps), simulation.results
    if 0 < died < len(results) and results[died].outcome is not None:
        broken = results[died - 1].state.mmu_broken
        if broken is MmuFault.UNINITIALISED:
            return None  # the model says so: the host crashes where KVM must emulate
    return Mismatch("end", "done", replayed.host or replayed.error or replayed.end)
