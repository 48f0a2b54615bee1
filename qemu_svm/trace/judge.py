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

from qemu_svm.trace.phases import NESTED, PUTS, RUNNING, Phase, PhaseKind, Step
from qemu_svm.trace.verdict import Put
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
