"""Judges every put of nested state by the order rules.

A put is judged by the calls between the put or KVM_RUN before it and the next KVM_RUN
or put of nested state, whichever comes first.  If another put of nested state comes
first, nothing ran with this one (in a restore, QEMU's puts of a new vCPU and at
reset), and only the rules about what the kernel refuses immediately apply.

Only what the order shows is judged; rules that depend on data or on the kernel have
the outcome ``depends``.  A call that failed counts as not made.
"""

from __future__ import annotations

from collections.abc import Sequence

from qemu_svm.trace.by_value import EFER_SVME, guest_mode
from qemu_svm.trace.phases import (
    CPUID,
    CREATE,
    LAPIC,
    MP_STATE,
    NESTED,
    PUTS,
    REGS,
    RUNNING,
    SREGS,
    TSC,
    Phase,
    PhaseKind,
    Step,
)
from qemu_svm.trace.verdict import Put, RuleOutcome, RuleResult, result
from qemu_svm.trace.window import VcpuHistory, VmContext, Window


def judge_order(phases: Sequence[Phase], around: VmContext) -> tuple[Put, ...]:
    """Judge every put of nested state among one vCPU's phases."""
    past = VcpuHistory()
    puts = []
    before: list[Step] = []
    for at, phase in enumerate(phases):
        if phase.nested:
            window = _window(phases, at, before, past, around)
            puts.append(window.put(at))
        if phase.nested or phase.kind in RUNNING:
            before = []
        elif phase.kind in PUTS or phase.kind is PhaseKind.OTHER:
            before += phase.steps
        past.add(phase)
    return tuple(puts)


def judge_without(phases: Sequence[Phase]) -> tuple[RuleResult, ...]:
    """Judge a whole state of a recording that is put before KVM_RUN and lacks nested state.

    Whether the vCPU was in L2 shows only where its nested state was read before.
    """
    was: Step | None = None
    put: list[Phase] = []
    for phase in phases:
        if phase.kind in RUNNING:
            return _without(put, was, phase.steps[0])
        put.append(phase)
        reads = [step for step in phase.steps if step.name == "KVM_GET_NESTED_STATE"]
        was = reads[-1] if reads else was
    return ()


_WHOLE = CPUID | LAPIC | MP_STATE | TSC | {CREATE}


def _without(put: Sequence[Phase], was: Step | None, run: Step) -> tuple[RuleResult, ...]:
    last = next((at for at in reversed(range(len(put))) if put[at].has(SREGS)), None)
    if last is None or not any(phase.has(_WHOLE) for phase in put):
        return ()
    sregs = [step for step in put[last].steps if step.name in SREGS and step.data is not None]
    svme = bool(sregs) and sregs[-1].efer is not None and bool(sregs[-1].efer & EFER_SVME)
    nested = [(at, step) for at, phase in enumerate(put) for step in phase.nested]
    given = any(at >= last or guest_mode(step) is not False for at, step in nested)
    if not svme or given or not any(phase.has(REGS) for phase in put):
        return ()
    line = sregs[-1].line
    where = "it ran before" if run.inferred else "KVM_RUN at"
    note = f"SREGS with SVME at line {line}, no NESTED_STATE, {where} line {run.line}"
    if was is not None and guest_mode(was):
        note += f"; it was read in guest mode at line {was.line}"
        return (result("O-31", RuleOutcome.VIOLATED, line, note),)
    note += "; whether it was in L2, the log does not show"
    dropped = f"SREGS with SVME are put at line {line}"
    return (
        result("T-04", RuleOutcome.VIOLATED, line, dropped),
        result("O-31", RuleOutcome.DEPENDS, line, note),
    )


def _window(
    phases: Sequence[Phase],
    at: int,
    before: Sequence[Step],
    past: VcpuHistory,
    around: VmContext,
) -> Window:
    own = phases[at].steps
    first = next(i for i, step in enumerate(own) if step.name == NESTED)
    last = max(i for i, step in enumerate(own) if step.name == NESTED)
    after: list[Step] = []
    setup: list[Step] = []
    run = None
    superseded = None
    for index in range(at + 1, len(phases)):
        phase = phases[index]
        if phase.kind in RUNNING:
            run = phase.steps[0]
            break
        if phase.nested:
            superseded = phase.nested[0].line
            break
        if phase.kind in PUTS or phase.kind is PhaseKind.OTHER:
            after += phase.steps
        elif phase.kind is PhaseKind.CREATION:
            setup += phase.steps
    return Window(
        before=[*before, *own[:first]],
        nested=list(own[first : last + 1]),
        after=[*own[last + 1 :], *after],
        setup=setup,
        order=[*own, *after],
        past=past,
        around=around,
        run=run,
        superseded=superseded,
    )
