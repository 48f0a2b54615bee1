"""A log of ioctls as timelines: phases of each vCPU, puts of nested state, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

from qemu_svm.trace.model import Trace, VcpuTrace
from qemu_svm.trace.phases import PUTS, Phase, PhaseKind
from qemu_svm.trace.refusals import Refusal
from qemu_svm.trace.verdict import Put, PutVerdict, RuleOutcome

_HEIGHT, _LEAST, _GAP = 26, 10.0, 2.0
_MOST = 60
_MOST_PUTS = 40
_CLASS = {
    PhaseKind.CREATION: "creation",
    PhaseKind.GET: "get",
    PhaseKind.APIC: "apic",
    PhaseKind.RUN: "run",
    PhaseKind.MIXED: "run",
    PhaseKind.OTHER: "other",
}
VERDICTS = {
    PutVerdict.OK: ("right", "ok"),
    PutVerdict.VIOLATES: ("error", "against the rules"),
    PutVerdict.UNKNOWN: ("warning", "cannot be judged"),
}
"""Class and words of a put's verdict."""


@dataclass(frozen=True, slots=True)
class Box:
    """A phase of the timeline; several phases in the middle of a long one are one box."""

    x: float
    width: float
    kind: str
    title: str
    mark: str


@dataclass(frozen=True, slots=True)
class Order:
    """A put of nested state: its ioctls, and the rules that it does not keep."""

    line: int
    kind: str
    migrated: bool
    verdict: tuple[str, str]
    steps: tuple[tuple[str, str], ...]
    rules: tuple[tuple[str, str, str, str, str], ...]
    then: str


@dataclass(frozen=True, slots=True)
class Lane:
    """The timeline of one vCPU."""

    label: str
    ioctls: int
    runs: int
    boxes: tuple[Box, ...]
    width: float
    orders: tuple[Order, ...]
    more_orders: int
    refusals: tuple[Refusal, ...]


def lanes(trace: Trace) -> list[Lane]:
    """Return the timelines of all vCPUs."""
    return [_lane(one) for one in trace.vcpus]


def _lane(vcpu: VcpuTrace) -> Lane:
    marks = {put.phase: VERDICTS[put.verdict][0] for put in vcpu.puts}
    boxes, x = [], 0.0
    for first, members in _grouped(vcpu.phases):
        count = sum(one.count for one in members)
        width = _LEAST + 7 * log2(1 + count)
        if len(members) == 1:
            (phase,) = members
            kind = "put" if phase.kind in PUTS else _CLASS.get(phase.kind, "other")
            times = f", {phase.times} times in turn" if phase.times > 1 else ""
            title = f"line {phase.line}: {phase.kind.value}, {count} ioctls{times}"
        else:
            kind = "more"
            title = f"lines {members[0].line} to {members[-1].last_line}: {len(members)} phases"
        found = {marks[at] for at in range(first, first + len(members)) if at in marks}
        mark = next((one for one in ("error", "warning", "right") if one in found), "")
        boxes.append(Box(round(x, 1), round(width, 1), kind, title, mark))
        x += width + _GAP
    shown = _chosen(vcpu.puts)
    return Lane(
        vcpu.vcpu.label, vcpu.ioctls, vcpu.runs, tuple(boxes), round(x, 1),
        tuple(_order(vcpu, one) for one in shown), len(vcpu.puts) - len(shown),
        tuple(one for one in vcpu.refusals if one.bad),
    )  # fmt: skip


def _grouped(phases: Sequence[Phase]) -> list[tuple[int, Sequence[Phase]]]:
    if len(phases) <= _MOST:
        return [(at, (one,)) for at, one in enumerate(phases)]
    half = _MOST // 2
    end = len(phases) - half
    return [
        *((at, (phases[at],)) for at in range(half)),
        (half, phases[half:end]),
        *((at, (phases[at],)) for at in range(end, len(phases))),
    ]


def _chosen(puts: Sequence[Put]) -> list[Put]:
    # All, or of many those that break a rule first.
    if len(puts) <= _MOST_PUTS:
        return list(puts)
    bad = [one for one in puts if one.verdict is PutVerdict.VIOLATES][:_MOST_PUTS]
    rest = [one for one in puts if one.verdict is not PutVerdict.VIOLATES]
    return sorted(bad + rest[: _MOST_PUTS - len(bad)], key=lambda one: one.line)


def _order(vcpu: VcpuTrace, put: Put) -> Order:
    then = ""
    if put.run is not None:
        then = f"runs at line {put.run.line}"
    elif put.superseded is not None:
        then = f"set again at line {put.superseded}"
    return Order(
        put.line,
        vcpu.phases[put.phase].kind.value,
        put.phase == vcpu.migrated,
        VERDICTS[put.verdict],
        tuple((one.short, one.error or "") for one in put.order),
        tuple(
            (
                one.rule.trace_severity.value if one.outcome is RuleOutcome.VIOLATED else "unknown",
                one.rule.id,
                one.rule.requires,
                one.note,
                one.rule.do if one.outcome is RuleOutcome.VIOLATED else "",
            )
            for one in put.results
            if one.outcome in (RuleOutcome.VIOLATED, RuleOutcome.UNKNOWN)
        ),
        then,
    )
