"""The rules on the stretch of a log around one put of nested state."""

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
from qemu_svm.trace.verdict import Judged, Outcome, Put, judged

EFER_SVME = 1 << 12

_FAILED_EXITS = {8: "SHUTDOWN", 9: "FAIL_ENTRY", 17: "INTERNAL_ERROR"}
_SHOWN = STATE | CPUID | {"KVM_SET_TSC_KHZ"}
_NEEDED = {"O-09": "REGS", "O-13": "MSRS", "O-27": "MP_STATE"}
_HARMLESS = frozenset({None, "EINTR", "EAGAIN"})
_INSTEAD = {"KVM_SET_SREGS2": SREGS, "KVM_SET_CPUID2": CPUID}


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the log shows of the VM.

    :param memory: line of the first memory region, None if none was set.
    :param vm: whether the log has ioctls of the VM from its creation on.
    """

    memory: int | None = None
    vm: bool = False


@dataclass(slots=True)
class Past:
    """What was seen of the vCPU before a put."""

    created: bool = False
    cpuid: bool = False
    ran: bool = False
    anything: bool = False

    def add(self, phase: Phase) -> None:
        """Take one more phase."""
        self.anything = True
        self.ran = self.ran or phase.kind in RUNNING
        for step in phase.steps:
            self.created = self.created or step.name == CREATE
            self.cpuid = self.cpuid or (step.name in CPUID and step.error is None)


@dataclass(slots=True)
class Window:
    """What the rules look at.

    :param before: state put before NESTED_STATE and for it.
    :param nested: from the first NESTED_STATE of the put to the last.
    :param after: state put afterwards, until something runs or replaces it.
    :param setup: other ioctls afterwards, KVM_SET_CPUID2 among them.
    :param order: the put from its first ioctl on, for people.
    :param run: the KVM_RUN that uses it.
    :param superseded: line of the NESTED_STATE that replaces it.
    """

    before: list[Step]
    nested: list[Step]
    after: list[Step]
    setup: list[Step]
    order: list[Step]
    past: Past
    around: Surroundings
    run: Step | None
    superseded: int | None

    def put(self, phase: int) -> Put:
        """Judge it.  ``phase`` is its number among the vCPU's."""
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

    def _order_of_sregs(self) -> Iterable[Judged]:
        line = self.nested[0].line
        before = _find(self.before, SREGS)
        after = _find([*self.nested, *self.after], SREGS)
        yield self._svme(before)
        if before is not None:
            yield judged("O-06", Outcome.OK, before.line)
        if after is not None:
            yield judged("O-07", Outcome.OK, after.line)
            yield self._keeps_svme(after)
            yield judged("O-28", Outcome.OK, after.line)
        elif not self.superseded:
            yield judged("O-28", Outcome.DEPENDS, line, "on the kernel and on nested paging")
        if before is not None or after is not None:
            yield judged("O-05", Outcome.OK, (before or after or self.nested[0]).line)
        elif not self.superseded:
            yield self._missing("O-05", "no SREGS in this put")

    def _svme(self, before: Step | None) -> Judged:
        nested = self.nested[0]
        if nested.value is not None and nested.error is None:
            return judged("O-01", Outcome.OK, nested.line, "KVM accepted it")
        if before is not None:
            if before.efer is not None and not before.efer & EFER_SVME:
                note = f"EFER is {before.efer:#x}, without SVME: right only if not in guest mode"
                return judged("O-01", Outcome.DEPENDS, before.line, note)
            return judged("O-01", Outcome.OK, before.line)
        if _find(self.before, MSRS) is not None:
            note = "no SREGS before it; MSRS stand there, with or without EFER"
            return judged("O-01", Outcome.DEPENDS, nested.line, note)
        if not self.past.anything and not self.before:
            note = "the log begins with NESTED_STATE"
            return judged("O-01", Outcome.UNKNOWN, nested.line, note)
        note = "neither SREGS nor MSRS before it in this put"
        return judged("O-01", Outcome.VIOLATED, nested.line, note)

    def _keeps_svme(self, after: Step) -> Judged:
        if after.efer is None:
            return judged("O-08", Outcome.DEPENDS, after.line, "on EFER in SREGS")
        if after.efer & EFER_SVME:
            return judged("O-08", Outcome.OK, after.line)
        note = f"EFER is {after.efer:#x}, without SVME"
        return judged("O-08", Outcome.VIOLATED, after.line, note)

    # --- CPUID ---

    def _cpuid(self) -> Iterable[Judged]:
        line = self.nested[0].line
        early = _find(self.before, CPUID)
        late = _find([*self.nested, *self.after, *self.setup], CPUID)
        first = early or late
        sregs = _find(self.before, SREGS)
        if self.past.cpuid or self.past.ran or early is not None:
            yield judged("O-03", Outcome.OK, line)
        elif late is not None:
            yield judged("O-03", Outcome.VIOLATED, line, f"the first comes at line {late.line}")
        elif self.past.created:
            yield judged("O-03", Outcome.VIOLATED, line, "none since KVM_CREATE_VCPU")
        else:
            note = "the log does not show how the vCPU was made"
            yield judged("O-03", Outcome.UNKNOWN, line, note)
        if sregs is not None and (self.past.cpuid or self.past.ran):
            yield judged("O-02", Outcome.OK, sregs.line)
        elif sregs is not None and first is not None:
            right = first.line < sregs.line
            yield judged("O-02", Outcome.OK if right else Outcome.VIOLATED, first.line)
        if not self.superseded:
            outcome = Outcome.OK if late is None else Outcome.VIOLATED
            yield judged("O-04", outcome, line if late is None else late.line)

    # --- what must be there before KVM_RUN ---

    def _either_side(self) -> Iterable[Judged]:
        everything = [*self.before, *self.nested, *self.after]
        rules = (("O-09", REGS), ("O-11", MSRS), ("O-13", MSRS), ("O-15", DEBUGREGS))
        for rule_id, names in (*rules, ("O-27", MP_STATE)):
            found = _find(everything, names)
            if found is not None:
                yield judged(rule_id, Outcome.OK, found.line)
            elif rule_id in _NEEDED and not self.superseded:
                yield self._missing(rule_id, f"no {_NEEDED[rule_id]} in this put")

    def _once(self) -> Iterable[Judged]:
        times = sum(step.count for step in self.nested if step.name == NESTED)
        if times > 1:
            note = f"it is put {times} times"
            yield judged("O-25", Outcome.VIOLATED, self.nested[-1].line, note)

    def _before_running(self) -> Iterable[Judged]:
        events = _find([*self.nested, *self.after], EVENTS)
        early = _find(self.before, EVENTS)
        if events is not None:
            yield judged("O-16", Outcome.OK, events.line)
        elif early is not None and not self.superseded:
            yield judged("O-16", Outcome.VIOLATED, early.line, "they stand only before it")
        elif not self.superseded:
            yield self._missing("O-16", "no VCPU_EVENTS in this put")
        if self.run is not None:
            yield self._memory(self.run.line)

    def _missing(self, rule_id: str, note: str) -> Judged:
        if self.run is None:
            return judged(rule_id, Outcome.UNKNOWN, self.nested[0].line, f"{note}, the log ends")
        note = f"{note}, KVM_RUN at line {self.run.line}"
        return judged(rule_id, Outcome.VIOLATED, self.run.line, note)

    def _memory(self, run: int) -> Judged:
        memory = self.around.memory
        if memory is not None and memory < run:
            return judged("O-22", Outcome.OK, memory)
        if self.around.vm:
            return judged("O-22", Outcome.VIOLATED, run, "no memory region was set")
        return judged("O-22", Outcome.DEPENDS, run, "the log does not have the VM's ioctls")

    # --- leaving guest mode, data, results ---

    def _leaving(self) -> Iterable[Judged]:
        line = self.nested[0].line
        if not self.past.ran or self.superseded:
            return
        after = [*self.nested, *self.after]
        yield judged("O-25", Outcome.DEPENDS, line, "on whether the vCPU was in L2 until then")
        sregs, regs = _find(after, SREGS), _find(after, REGS)
        if sregs is not None and regs is not None:
            yield judged("O-26", Outcome.OK, regs.line)
        elif regs is None or _find(self.before, SREGS) is None:
            yield self._missing("O-26", "SREGS or REGS are not in this put")
        else:
            note = "SREGS stand before it only: wrong if this put takes the vCPU out of L2"
            yield judged("O-26", Outcome.DEPENDS, line, note)

    def _data(self) -> Iterable[Judged]:
        msrs = _find(self.after, MSRS)
        if msrs is not None:
            yield judged("O-12", Outcome.DEPENDS, msrs.line, "on EFER among the MSRs")
        events = _find([*self.before, *self.nested, *self.after], EVENTS)
        if events is not None:
            yield judged("O-17", Outcome.DEPENDS, events.line, "on smm in VCPU_EVENTS")

    def _results(self) -> Iterable[Judged]:
        steps = [*self.before, *self.nested, *self.after, *self.setup]
        steps = [step for step in steps if step.name in STATE or step.name in CPUID]
        refused = _refused(steps)
        ran = self.run is not None
        for step in refused:
            note = f"{step.name} at line {step.line} failed with {step.error}"
            if ran and step.name == NESTED:
                note += ": the vCPU then runs L2's code in L1's context"
            yield judged("T-01" if ran else "T-02", Outcome.VIOLATED, step.line, note)
        if not refused:
            known = all(step.value is not None for step in steps)
            outcome = Outcome.OK if known else Outcome.DEPENDS
            note = "" if known else "the log does not have all results"
            yield judged("T-01", outcome, self.nested[0].line, note)
        if self.run is not None:
            yield _ran(self.run)


def _ran(run: Step) -> Judged:
    if run.error not in _HARMLESS:
        note = f"{RUN} failed with {run.error}"
        return judged("T-03", Outcome.VIOLATED, run.line, note)
    if run.exit_reason in _FAILED_EXITS:
        note = f"{RUN} came back with {_FAILED_EXITS[run.exit_reason]}"
        return judged("T-03", Outcome.VIOLATED, run.line, note)
    known = run.value is not None or run.exit_reason is not None
    if known:
        return judged("T-03", Outcome.OK, run.line)
    return judged("T-03", Outcome.DEPENDS, run.line, "the log does not say how it came back")


def _refused(steps: Sequence[Step]) -> list[Step]:
    # The first of each kind of failure.  A later try that succeeds makes up for
    # it, as SREGS does for SREGS2.
    done: set[str] = set()
    found: dict[tuple[str, str], Step] = {}
    for step in reversed(steps):
        if step.error is None:
            done.add(step.name)
        elif done.isdisjoint(_INSTEAD.get(step.name, {step.name})):
            found[step.name, step.error] = step
    return list(found.values())[::-1]


def _find(steps: Sequence[Step], names: frozenset[str]) -> Step | None:
    # The last of these that was not refused.
    for step in reversed(steps):
        if step.name in names and step.error is None:
            return step
    return None
