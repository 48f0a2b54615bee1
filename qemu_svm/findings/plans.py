"""Two plans beside each other: the first step where they part, and what becomes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest

from qemu_svm.findings.verdict import Judgement, judge_restore
from qemu_svm.model.area import Area, Content
from qemu_svm.model.simulate import Result, Simulation, Snapshot

_FLAGS = ("guest_mode", "gif", "smm", "run_pending", "mmu", "mmu_broken", "save_cache_valid")


@dataclass(frozen=True, slots=True)
class Apart:
    """One register or flag that differs.

    :param where: the area that holds it, ``entry`` (what the processor is given), ``l1`` (what
        L1 gets back), or empty for a flag of the vCPU.
    :param a: after the first plan's step; None if it has no such register.
    :param step_a: the step of the first plan that wrote it last; 0 for the reset.
    """

    where: str
    register: str
    a: Content | str | None
    b: Content | str | None
    step_a: int = 0
    step_b: int = 0


@dataclass(frozen=True, slots=True)
class PlansApart:
    """Two plans on one kernel.

    :param plan: the second plan, as given; the first is that of the report.
    :param at_a: the first plan's step where they part; None if it has ended there, or if
        they do not part.
    :param after: what differs after that step.
    :param run: what differs when the vCPU runs; empty if one of the plans does not run it.
    """

    plan: str
    b: Simulation
    judgement: Judgement
    at_a: Result | None
    at_b: Result | None
    after: tuple[Apart, ...]
    run: tuple[Apart, ...]

    @property
    def part(self) -> bool:
        """Whether they part at all."""
        return self.at_a is not None or self.at_b is not None


def compare_plans(a: Simulation, b: Simulation, plan: str) -> PlansApart:
    """Compare two plans that were run from the same stream on the same kernel.

    Steps that succeed and change nothing do not count: plans do not part there.

    :param plan: the text of the second.
    """
    judgement = judge_restore(b)
    before = a.start
    for ours, theirs in zip_longest(_effective(a), _effective(b)):
        if ours is None or theirs is None or not _alike(ours, theirs):
            state_a = before if ours is None else ours.state
            state_b = before if theirs is None else theirs.state
            after = tuple(_states(state_a, state_b))
            return PlansApart(plan, b, judgement, ours, theirs, after, tuple(_runs(a, b)))
        before = ours.state
    return PlansApart(plan, b, judgement, None, None, (), ())


def _effective(simulation: Simulation) -> list[Result]:
    before, found = simulation.start, []
    for result in simulation.results:
        changed = any(_states(before, result.state)) or result.outcome is not None
        if changed or result.failed or result.notes:
            found.append(result)
        before = result.state
    return found


def _alike(a: Result, b: Result) -> bool:
    same = (a.step.text, a.failed, a.notes) == (b.step.text, b.failed, b.notes)
    return same and not any(_states(a.state, b.state))


def _states(a: Snapshot, b: Snapshot) -> Iterator[Apart]:
    for name in _FLAGS:
        ours, theirs = getattr(a, name), getattr(b, name)
        if ours != theirs:
            yield Apart("", name, _word(ours), _word(theirs))
    if a.nested.flags != b.nested.flags:
        yield Apart("", "flags", a.nested.flags, b.nested.flags)
    for name in dict.fromkeys((*a.areas, *b.areas)):
        yield from _areas(name, a.areas.get(name), b.areas.get(name))


def _word(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _areas(where: str, a: Area | None, b: Area | None) -> Iterator[Apart]:
    for name in dict.fromkeys((*(a or ()), *(b or ()))):
        ours = a.content(name) if a is not None and name in a else None
        theirs = b.content(name) if b is not None and name in b else None
        if ours != theirs:
            steps = [
                area.writer(name).step if area is not None and name in area else 0
                for area in (a, b)
            ]
            yield Apart(where, name, ours, theirs, *steps)


def _runs(a: Simulation, b: Simulation) -> Iterator[Apart]:
    # Of the first run of each.
    ours, theirs = (
        next((r.outcome for r in one.results if r.outcome is not None), None) for one in (a, b)
    )
    if ours is None or theirs is None:
        return
    if ours.result != theirs.result:
        yield Apart("", "KVM_RUN", str(ours.result), str(theirs.result))
    for where, one, two in (("entry", ours.entry, theirs.entry), ("l1", ours.l1, theirs.l1)):
        if one is not None and two is not None:
            yield from _areas(where, one, two)
