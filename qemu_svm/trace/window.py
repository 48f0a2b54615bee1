"""Applies the rules to the calls around one put of nested state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from qemu_svm.trace.by_value import (
    EFER_SVME,
    SHADOW_VALID,
    SMM_VALID,
    ByValue,
    efer_of,
    events_of,
    guest_mode,
    last_nested,
    whose_regs,
    whose_sregs,
)
from qemu_svm.trace.phases import (
    CPUID,
    CREATE,
    DEBUGREGS,
    EVENTS,
    MP_STATE,
    MSRS,
    NESTED,
    READS,
    REGS,
    RUN,
    RUNNING,
    SREGS,
    STATE,
    Phase,
    Step,
)
from qemu_svm.trace.rules import rule
from qemu_svm.trace.verdict import Content, Put, RuleOutcome, RuleResult, Whose, result

if TYPE_CHECKING:
    from qemu_svm.model.profile import Profile

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
    :param kernel: what the host's kernel does, where the log names it.
    :param in_l2: SREGS and REGS that were read of a vCPU in guest mode, and where first.
    """

    memory: int | None = None
    vm: bool = False
    kernel: Profile | None = None
    in_l2: Mapping[bytes, int] = field(default_factory=dict)


@dataclass(slots=True)
class VcpuHistory:
    """The calls on the vCPU before a put."""

    created: bool = False
    cpuid: bool = False
    ran: bool = False
    anything: bool = False
    reads: dict[str, Step] = field(default_factory=dict)
    """What was read last, by the ioctl's name."""

    def add(self, phase: Phase) -> None:
        """Add the next phase."""
        self.anything = True
        self.ran = self.ran or phase.kind in RUNNING
        for step in phase.steps:
            self.created = self.created or step.name == CREATE
            if step.name in READS and step.data is not None:
                self.reads[step.name] = step
            self.cpuid = self.cpuid or (step.name in CPUID and step.error is None)


def _taken(step: Step) -> bool:
    return step.name == NESTED and step.error is None


@dataclass
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

    @cached_property
    def data(self) -> ByValue:
        """What the data of the put says."""
        last = last_nested(self.nested)
        return ByValue(last, self.before, [*self.nested, *self.after], self.around.kernel)

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
            *self.data.results(),
            *self._accepted(),
            *self._results(),
        ]
        return Put(
            phase,
            self.nested[0].line,
            tuple(step for step in self.order if step.name in _SHOWN),
            tuple(sorted(found, key=lambda one: one.rule.id)),
            self.run,
            self.superseded,
            self._contents(),
        )

    def _accepted(self) -> Iterable[RuleResult]:
        # By the model of KVM's checks; of a vCPU that ran before it lacks what was put then.
        steps = (*self.before, *self.nested, *self.after)
        if not self.data.known or _find(self.before, SREGS) is None:
            return
        from qemu_svm.trace.accepted import refused

        found = refused(steps, self.around.kernel)
        if found is None:
            yield result("O-33", RuleOutcome.OK, self.nested[0].line)
            return
        step = steps[found.at]
        note = f"{step.name} at line {step.line}: {found.words}"
        outcome = RuleOutcome.VIOLATED if found.every else RuleOutcome.DEPENDS
        if not found.every:
            note += f", on {', '.join(found.kernels)}"
        elif step.value == 0:
            note += "; the log says that it succeeded"
        yield result("O-33", outcome, step.line, note)

    def _contents(self) -> tuple[Content, ...]:
        nested = self.data.nested
        found = []
        for step in (*self.before, *self.nested, *self.after):
            if step.data is None or step.name not in _SHOWN:
                continue
            whose = None
            if step.name in SREGS:
                whose = whose_sregs(step, nested)
            elif step.name in REGS:
                whose = whose_regs(step, nested)
            found.append(Content(step, whose))
        return tuple(found)

    # --- SREGS and EFER ---

    def _order_of_sregs(self) -> Iterable[RuleResult]:
        line = self.nested[0].line
        before = _find(self.before, SREGS)
        after = _find([*self.nested, *self.after], SREGS)
        yield self._svme_by_value() or self._svme(before)
        if before is not None:
            yield result("O-06", RuleOutcome.OK, before.line)
        if after is not None:
            yield result("O-07", RuleOutcome.OK, after.line)
            yield self._keeps_svme(after)
            yield result("O-28", RuleOutcome.OK, after.line)
        elif not self.superseded:
            yield self._needs_sregs_again(line)
        last = after or before
        if last is not None:
            yield self._are_l2s("O-05", last)
        elif not self.superseded:
            yield self._missing("O-05", "no SREGS in this put")

    def _needs_sregs_again(self, line: int) -> RuleResult:
        nested_paging = self.data.nested_paging()
        if self.data.known and not nested_paging:
            return result("O-28", RuleOutcome.OK, line, "L1 does not use nested paging")
        if nested_paging:
            kernels = rule("O-28").kernels
            return self.data.on_kernel(
                "O-28", lambda kernel: kernel.row in kernels, "L1 uses nested paging"
            )
        return result("O-28", RuleOutcome.DEPENDS, line, "on the kernel and on nested paging")

    def _are_l2s(self, rule_id: str, step: Step) -> RuleResult:
        # KVM takes L1's registers as well as L2's; the nested state has L1's.
        judge = whose_sregs if step.name in SREGS else whose_regs
        whose = judge(step, self.data.nested)
        note = ""
        if whose is Whose.L1:
            note = f"{step.short} at line {step.line} are L1's, as they are in the nested state"
        elif whose is Whose.MIXED and step.name in REGS:
            note = f"{step.short} at line {step.line} are partly L1's"
        if not note or self._as_read(step):
            return result(rule_id, RuleOutcome.OK, step.line)
        return result(rule_id, RuleOutcome.VIOLATED, step.line, note)

    def _as_read(self, step: Step) -> bool:
        # A guest whose L2 has L1's page tables and descriptor tables: they were read so in L2.
        line = self.around.in_l2.get(step.data or b"")
        return line is not None and line < step.line

    def _svme_by_value(self) -> RuleResult | None:
        efers = [(step, efer_of(step)) for step in self.before if step.error is None]
        known = [(step, efer) for step, efer in efers if efer is not None]
        if not known or not self.data.known:
            return None
        step, efer = known[-1]
        wrong = self.data.guest and not efer & EFER_SVME
        outcome = RuleOutcome.VIOLATED if wrong else RuleOutcome.OK
        note = f"EFER is {efer:#x}, without SVME" if wrong else ""
        return result("O-01", outcome, step.line, note)

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
        elif late is None and self.data.known and not self.data.guest:
            yield result("O-03", RuleOutcome.OK, line, "it is not in guest mode")
        elif late is None and self.data.guest and self.data.nested.value == 0:
            yield result("O-03", RuleOutcome.OK, line, "KVM accepted it")
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
            # Nested state that KVM refused counts as not set.
            taken = next((one.line for one in self.nested if _taken(one)), line)
            steps = [one for one in (*self.nested, *self.after, *self.setup) if one.line > taken]
            late = _find(steps, CPUID)
            outcome = RuleOutcome.OK if late is None else RuleOutcome.VIOLATED
            yield result("O-04", outcome, line if late is None else late.line)

    # --- what must be set before KVM_RUN ---

    def _either_side(self) -> Iterable[RuleResult]:
        everything = [*self.before, *self.nested, *self.after]
        rules = (("O-09", REGS), ("O-11", MSRS), ("O-13", MSRS), ("O-15", DEBUGREGS))
        for rule_id, names in (*rules, ("O-27", MP_STATE)):
            found = _find(everything, names)
            if found is not None:
                yield self._set(rule_id, found)
            elif rule_id in _NEEDED and not self.superseded:
                yield self._missing(rule_id, f"no {_NEEDED[rule_id]} in this put")

    def _set(self, rule_id: str, found: Step) -> RuleResult:
        if rule_id == "O-09":
            return self._are_l2s(rule_id, found)
        hsave = self.data.hsave() if rule_id == "O-13" and self.data.guest else None
        if hsave in (0, -1) and not self.superseded and not self.past.ran:
            what = "is 0" if hsave == 0 else "is not among them"
            certain = hsave == 0 or self.data.whole_msrs()
            outcome = RuleOutcome.VIOLATED if certain else RuleOutcome.DEPENDS
            return result(rule_id, outcome, found.line, f"VM_HSAVE_PA {what}")
        return result(rule_id, RuleOutcome.OK, found.line)

    def _once(self) -> Iterable[RuleResult]:
        # Outside guest mode it may be set any number of times.
        times = sum(
            step.count for step in self.nested if _taken(step) and guest_mode(step) is not False
        )
        if times > 1:
            note = f"it is set {times} times"
            yield result("O-25", RuleOutcome.VIOLATED, self.nested[-1].line, note)

    def _before_running(self) -> Iterable[RuleResult]:
        events = _find([*self.nested, *self.after], EVENTS)
        early = _find(self.before, EVENTS)
        if events is not None:
            yield result("O-16", RuleOutcome.OK, events.line)
        elif early is not None and not self.superseded and self._has_no_shadow(early):
            yield result("O-16", RuleOutcome.OK, early.line, "no interrupt shadow is set before it")
        elif early is not None and not self.superseded:
            yield result("O-16", RuleOutcome.VIOLATED, early.line, "they are only before it")
        elif not self.superseded:
            yield self._missing("O-16", "no VCPU_EVENTS in this put")
        if self.run is not None:
            yield self._memory(self.run.line)

    def _has_no_shadow(self, early: Step) -> bool:
        values = events_of(early)
        if values is None or not self.data.known:
            return False
        shadow = values["flags"] & SHADOW_VALID and values["shadow"]
        return not (shadow and self.data.guest)

    def _missing(self, rule_id: str, note: str) -> RuleResult:
        if self.run is None:
            return result(
                rule_id, RuleOutcome.UNKNOWN, self.nested[0].line, f"{note}, the log ends"
            )
        where = "it ran before" if self.run.inferred else "KVM_RUN at"
        note = f"{note}, {where} line {self.run.line}"
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
        if self.data.guest:
            was = self.past.reads.get("KVM_GET_NESTED_STATE")
            if was is None or guest_mode(was):
                note = "on whether the vCPU was in L2 until then"
                yield result("O-25", RuleOutcome.DEPENDS, line, note)
            return
        if not self.data.known:
            note = "on whether the vCPU was in L2 until then"
            yield result("O-25", RuleOutcome.DEPENDS, line, note)
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
        if msrs is not None and self.data.known:
            yield self._msrs_keep_svme()
        elif msrs is not None:
            yield result("O-12", RuleOutcome.DEPENDS, msrs.line, "on EFER among the MSRs")
        events = _find([*self.before, *self.nested, *self.after], EVENTS)
        values = events_of(events)
        if events is not None and values is not None and self.data.known:
            in_smm = values["flags"] & SMM_VALID and values["smm"] and self.data.guest
            outcome = RuleOutcome.VIOLATED if in_smm else RuleOutcome.OK
            note = "smm is 1 in guest mode" if in_smm else ""
            yield result("O-17", outcome, events.line, note)
        elif events is not None:
            yield result("O-17", RuleOutcome.DEPENDS, events.line, "on smm in VCPU_EVENTS")

    def _msrs_keep_svme(self) -> RuleResult:
        after = [step for step in self.after if step.name in MSRS and step.error is None]
        for step in after:
            efer = efer_of(step)
            if efer is not None and not efer & EFER_SVME and self.data.guest:
                note = f"EFER is {efer:#x}, without SVME"
                return result("O-12", RuleOutcome.VIOLATED, step.line, note)
        return result("O-12", RuleOutcome.OK, after[-1].line)

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
