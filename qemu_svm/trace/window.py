"""Applies the rules to the calls around one put of nested state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qemu_svm.trace.phases import (
    CPUID,
    CREATE,
    DEBUGREGS,
    EVENTS,
    MP_STATE,
    MSRS,
    NESTED,
    REGS,
    RUN,
    RUNNING,
    SREGS,
    STATE,
    Phase,
    Step,
)
from qemu_svm.trace.verdict import Put, RuleOutcome, RuleResult, result

EFER_SVME = 1 << 12

_FAILED_EXITS = {8: "SHUTDOWN", 9: "FAIL_ENTRY", 17: "INTERNAL_ERROR"}
_SHOWN = STATE | CPUID | {"KVM_SET_TSC_KHZ"}
_NEEDED = {"O-09": "REGS", "O-13": "MSRS", "O-27": "MP_STATE"}
_HARMLESS = frozenset({None, "EINTR", "EAGAIN"})
_INSTEAD = {"KVM_SET_SREGS2": SREGS, "KVM_SET_CPUID2": CPUID}


@dataclass(frozen=True, slots=True)
class VmContext:
    """The ioctls of the VM, as far as the log has them.

    :param memory: line of the first memory region, None if none was set.
    :param vm: whether the log has ioctls of the VM since its creation.
    """

    memory: int | None = None
    vm: bool = False


@dataclass(slots=True)
class VcpuHistory:
    """The calls on the vCPU before a put."""

    created: bool = False
    cpuid: bool = False
    ran: bool = False
    anything: bool = False

    def add(self, phase: Phase) -> None:
        """Add the next phase."""
        self.anything = True
        self.ran = self.ran or phase.kind in RUNNING
        for step in phase.steps:
            self.created = self.created or step.name == CREATE
            self.cpuid = self.cpuid or (step.name in CPUID and step.error is None)


@dataclass(slots=True)
class Window:
    """The calls that the rules apply to.

    :param before: state set before NESTED_STATE.
    :param nested: from the first NESTED_STATE of the put to the last.
    :param after: state set afterwards, until the vCPU runs or the state is replaced.
    :param setup: other ioctls afterwards, KVM_SET_CPUID2 among them.
    :param order: all calls of the put, as reports list them.
    :param run: the KVM_RUN that uses the state.
    :param superseded: line of the NESTED_STATE that replaces it.
    """

    before: list[Step]
    nested: list[Step]
    after: list[Step]
    setup: list[Step]
    order: list[Step]
    past: VcpuHistory
    around: VmContext
    run: Step | None
    superseded: int | None

    def put(self, phase: int) -> Put:
        """Judge the put.

        :param phase: its number among the vCPU's phases.
        """
        found = [
            *self._order_of_sregs(),
            *self._cpuid(),
            *self._either_side(),
            *self._once(),
            *self._before_running(),
            *self._leaving(),
            *self._data(),
            *self._results(),
        ]
        return Put(
            phase,
            self.nested[0].line,
            tuple(step for step in self.order if step.name in _SHOWN),
            tuple(sorted(found, key=lambda one: one.rule.id)),
            self.run,
            self.superseded,
        )

    # --- SREGS and EFER ---

    def _order_of_sregs(self) -> Iterable[RuleResult]:
        line = self.nested[0].line
        before = _find(self.before, SREGS)
        after = _find([*self.nested, *self.after], SREGS)
        yield self._svme(before)
        if before is not None:
            yield result("O-06", RuleOutcome.OK, before.line)
        if after is not None:
            yield result("O-07", RuleOutcome.OK, after.line)
            yield self._keeps_svme(after)
            yield result("O-28", RuleOutcome.OK, after.line)
        elif not self.superseded:
            yield result("O-28", RuleOutcome.DEPENDS, line, "on the kernel and on nested paging")
        if before is not None or after is not None:
            yield result("O-05", RuleOutcome.OK, (before or after or self.nested[0]).line)
        elif not self.superseded:
            yield self._missing("O-05", "no SREGS in this put")

    def _svme(self, before: Step | None) -> RuleResult:
        nested = self.nested[0]
        if nested.value is not None and nested.error is None:
            return result("O-01", RuleOutcome.OK, nested.line, "KVM accepted it")
        if before is not None:
            if before.efer is not None and not before.efer & EFER_SVME:
                note = f"EFER is {before.efer:#x}, without SVME: correct only outside guest mode"
                return result("O-01", RuleOutcome.DEPENDS, before.line, note)
            return result("O-01", RuleOutcome.OK, before.line)
        if _find(self.before, MSRS) is not None:
            note = "no SREGS before it, but MSRS, which may or may not have EFER"
            return result("O-01", RuleOutcome.DEPENDS, nested.line, note)
        if not self.past.anything and not self.before:
            note = "the log begins with NESTED_STATE"
            return result("O-01", RuleOutcome.UNKNOWN, nested.line, note)
        note = "neither SREGS nor MSRS before it in this put"
        return result("O-01", RuleOutcome.VIOLATED, nested.line, note)

    def _keeps_svme(self, after: Step) -> RuleResult:
        if after.efer is None:
            return result("O-08", RuleOutcome.DEPENDS, after.line, "on EFER in SREGS")
        if after.efer & EFER_SVME:
            return result("O-08", RuleOutcome.OK, after.line)
        note = f"EFER is {after.efer:#x}, without SVME"
        return result("O-08", RuleOutcome.VIOLATED, after.line, note)

    # --- CPUID ---

    def _cpuid(self) -> Iterable[RuleResult]:
        line = self.nested[0].line
        early = _find(self.before, CPUID)
        late = _find([*self.nested, *self.after, *self.setup], CPUID)
        first = early or late
        sregs = _find(self.before, SREGS)
        if self.past.cpuid or self.past.ran or early is not None:
            yield result("O-03", RuleOutcome.OK, line)
        elif late is not None:
            yield result("O-03", RuleOutcome.VIOLATED, line, f"the first is at line {late.line}")
        elif self.past.created:
            yield result("O-03", RuleOutcome.VIOLATED, line, "none since KVM_CREATE_VCPU")
        else:
            note = "the log does not show the creation of the vCPU"
            yield result("O-03", RuleOutcome.UNKNOWN, line, note)
        if sregs is not None and (self.past.cpuid or self.past.ran):
            yield result("O-02", RuleOutcome.OK, sregs.line)
        elif sregs is not None and first is not None:
            right = first.line < sregs.line
            yield result("O-02", RuleOutcome.OK if right else RuleOutcome.VIOLATED, first.line)
        if not self.superseded:
            outcome = RuleOutcome.OK if late is None else RuleOutcome.VIOLATED
            yield result("O-04", outcome, line if late is None else late.line)

    # --- what must be set before KVM_RUN ---

    def _either_side(self) -> Iterable[RuleResult]:
        everything = [*self.before, *self.nested, *self.after]
        rules = (("O-09", REGS), ("O-11", MSRS), ("O-13", MSRS), ("O-15", DEBUGREGS))
        for rule_id, names in (*rules, ("O-27", MP_STATE)):
            found = _find(everything, names)
            if found is not None:
                yield result(rule_id, RuleOutcome.OK, found.line)
            elif rule_id in _NEEDED and not self.superseded:
                yield self._missing(rule_id, f"no {_NEEDED[rule_id]} in this put")

    def _once(self) -> Iterable[RuleResult]:
        times = sum(step.count for step in self.nested if step.name == NESTED)
        if times > 1:
            note = f"it is set {times} times"
            yield result("O-25", RuleOutcome.VIOLATED, self.nested[-1].line, note)

    def _before_running(self) -> Iterable[RuleResult]:
        events = _find([*self.nested, *self.after], EVENTS)
        early = _find(self.before, EVENTS)
        if events is not None:
            yield result("O-16", RuleOutcome.OK, events.line)
        elif early is not None and not self.superseded:
            yield result("O-16", RuleOutcome.VIOLATED, early.line, "they are only before it")
        elif not self.superseded:
            yield self._missing("O-16", "no VCPU_EVENTS in this put")
        if self.run is not None:
            yield self._memory(self.run.line)

    def _missing(self, rule_id: str, note: str) -> RuleResult:
        if self.run is None:
            return result(
                rule_id, RuleOutcome.UNKNOWN, self.nested[0].line, f"{note}, the log ends"
            )
        note = f"{note}, KVM_RUN at line {self.run.line}"
        return result(rule_id, RuleOutcome.VIOLATED, self.run.line, note)

    def _memory(self, run: int) -> RuleResult:
        memory = self.around.memory
        if memory is not None and memory < run:
            return result("O-22", RuleOutcome.OK, memory)
        if self.around.vm:
            return result("O-22", RuleOutcome.VIOLATED, run, "no memory region was set")
        return result("O-22", RuleOutcome.DEPENDS, run, "the log does not have the VM's ioctls")

    # --- leaving guest mode, data, results ---

    def _leaving(self) -> Iterable[RuleResult]:
        line = self.nested[0].line
        if not self.past.ran or self.superseded:
            return
        after = [*self.nested, *self.after]
        yield result("O-25", RuleOutcome.DEPENDS, line, "on whether the vCPU was in L2 until then")
        sregs, regs = _find(after, SREGS), _find(after, REGS)
        if sregs is not None and regs is not None:
            yield result("O-26", RuleOutcome.OK, regs.line)
        elif regs is None or _find(self.before, SREGS) is None:
            yield self._missing("O-26", "SREGS or REGS are not in this put")
        else:
            note = "SREGS are only before it: wrong if this put takes the vCPU out of L2"
            yield result("O-26", RuleOutcome.DEPENDS, line, note)

    def _data(self) -> Iterable[RuleResult]:
        msrs = _find(self.after, MSRS)
        if msrs is not None:
            yield result("O-12", RuleOutcome.DEPENDS, msrs.line, "on EFER among the MSRs")
        events = _find([*self.before, *self.nested, *self.after], EVENTS)
        if events is not None:
            yield result("O-17", RuleOutcome.DEPENDS, events.line, "on smm in VCPU_EVENTS")

    def _results(self) -> Iterable[RuleResult]:
        steps = [*self.before, *self.nested, *self.after, *self.setup]
        steps = [step for step in steps if step.name in STATE or step.name in CPUID]
        refused = _refused(steps)
        ran = self.run is not None
        for step in refused:
            note = f"{step.name} at line {step.line} failed with {step.error}"
            if ran and step.name == NESTED:
                note += ": the vCPU then runs L2's code in L1's context"
            yield result("T-01" if ran else "T-02", RuleOutcome.VIOLATED, step.line, note)
        if not refused:
            known = all(step.value is not None for step in steps)
            outcome = RuleOutcome.OK if known else RuleOutcome.DEPENDS
            note = "" if known else "the log does not have all results"
            yield result("T-01", outcome, self.nested[0].line, note)
        if self.run is not None:
            yield _ran(self.run)


def _ran(run: Step) -> RuleResult:
    if run.error not in _HARMLESS:
        note = f"{RUN} failed with {run.error}"
        return result("T-03", RuleOutcome.VIOLATED, run.line, note)
    if run.exit_reason in _FAILED_EXITS:
        note = f"{RUN} returned with {_FAILED_EXITS[run.exit_reason]}"
        return result("T-03", RuleOutcome.VIOLATED, run.line, note)
    known = run.value is not None or run.exit_reason is not None
    if known:
        return result("T-03", RuleOutcome.OK, run.line)
    return result("T-03", RuleOutcome.DEPENDS, run.line, "the log does not have its result")


def _refused(steps: Sequence[Step]) -> list[Step]:
    # The first of each kind of failure, unless a later try succeeds, as SREGS does after
    # SREGS2.
    done: set[str] = set()
    found: dict[tuple[str, str], Step] = {}
    for step in reversed(steps):
        if step.error is None:
            done.add(step.name)
        elif done.isdisjoint(_INSTEAD.get(step.name, {step.name})):
            found[step.name, step.error] = step
    return list(found.values())[::-1]


def _find(steps: Sequence[Step], names: frozenset[str]) -> Step | None:
    # The last of these that did not fail.
    for step in reversed(steps):
        if step.name in names and step.error is None:
            return step
    return None
