"""Splits the ioctls of one vCPU into phases: creation, get, put, run.

QEMU puts (writes) a vCPU's state at three levels, distinguished here by their ioctls:
at *full* level (a new vCPU, a loaded stream) it also sets the TSC frequency; at
*reset* level it does not, but still sets nested state and the MP state; at *run-time*
level neither.  It gets all state at once before it saves or stops.  During a load the
APIC device sets MSR APICBASE, the LAPIC and TPR reporting itself.

In all versions a put ends with DEBUGREGS, which separates two successive puts.
Programs other than QEMU use any order: until DEBUGREGS, all that is set or read
belongs to the same put.

Source: QEMU ``target/i386/kvm/kvm.c`` (``kvm_arch_put_registers``,
``kvm_arch_get_registers``) and ``hw/i386/kvm/apic.c``, 5.2 to 11.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from qemu_svm.trace.calls import Call

RUN = "KVM_RUN"
NESTED = "KVM_SET_NESTED_STATE"
SREGS = frozenset({"KVM_SET_SREGS", "KVM_SET_SREGS2"})
REGS = frozenset({"KVM_SET_REGS"})
MSRS = frozenset({"KVM_SET_MSRS"})
EVENTS = frozenset({"KVM_SET_VCPU_EVENTS"})
MP_STATE = frozenset({"KVM_SET_MP_STATE"})
DEBUGREGS = frozenset({"KVM_SET_DEBUGREGS"})
CPUID = frozenset({"KVM_SET_CPUID2", "KVM_SET_CPUID"})
LAPIC = frozenset({"KVM_SET_LAPIC"})
CREATE = "KVM_CREATE_VCPU"

STATE = (
    SREGS
    | REGS
    | MSRS
    | EVENTS
    | MP_STATE
    | DEBUGREGS
    | {NESTED, "KVM_SET_FPU", "KVM_SET_XSAVE", "KVM_SET_XCRS", "KVM_SET_ONE_REG"}
    | {"KVM_XEN_VCPU_SET_ATTR", "KVM_SET_GUEST_DEBUG"}
)
"""The ioctls of a put."""

READS = frozenset(
    f"KVM_GET_{name}"
    for name in (
        *("VCPU_EVENTS", "MP_STATE", "REGS", "FPU", "XSAVE", "XSAVE2", "XCRS", "SREGS", "SREGS2"),
        *("MSRS", "LAPIC", "DEBUGREGS", "NESTED_STATE", "ONE_REG"),
    )
) | {"KVM_XEN_VCPU_GET_ATTR"}
_APIC = LAPIC | {"KVM_TPR_ACCESS_REPORTING", "KVM_SET_VAPIC_ADDR"}
_SETUP = CPUID | {
    *(CREATE, "KVM_X86_SETUP_MCE", "KVM_GET_CPUID2", "KVM_GET_STATS_FD", "KVM_ENABLE_CAP"),
    *("KVM_SET_SIGNAL_MASK", "KVM_GET_SUPPORTED_HV_CPUID", "KVM_GET_REG_LIST"),
}
TSC = frozenset({"KVM_GET_TSC_KHZ", "KVM_SET_TSC_KHZ"})
_INTERRUPTED = frozenset({None, "EINTR", "EAGAIN"})
_CYCLE = 6


class PhaseKind(StrEnum):
    """Kinds of phases; puts have the names of QEMU's levels."""

    CREATION = "creation"
    GET = "get"
    APIC = "apic load"
    RESET = "reset put"
    FULL = "full put"
    RUNTIME = "run-time put"
    RUN = "run"
    MIXED = "run and others"
    OTHER = "other"


PUTS = frozenset({PhaseKind.RESET, PhaseKind.FULL, PhaseKind.RUNTIME})
RUNNING = frozenset({PhaseKind.RUN, PhaseKind.MIXED})
_RUNTIME = frozenset({PhaseKind.GET, PhaseKind.RUNTIME, PhaseKind.RUN, PhaseKind.OTHER})
_LONG = 512
_ENDS = 64


class Step(NamedTuple):
    """One call, or several successive equal calls; a named tuple, as calls are.

    :param line: where the first begins; ``last_line`` where the last does.
    :param value: the result of the first, None if the log does not have it.
    :param error: name of the errno of the first (and of all, except interrupted KVM_RUN).
    :param exit_reason: of KVM_RUN: exit reason of the first.
    :param data: what it put, or what the last of them read; None if the log lacks it.
    :param inferred: see :class:`~qemu_svm.trace.calls.Call`.
    """

    name: str
    number: int | None
    line: int
    last_line: int
    count: int = 1  # type: ignore[assignment]  # tuple's method is not used
    value: int | None = None
    error: str | None = None
    efer: int | None = None
    exit_reason: int | None = None
    data: bytes | None = None
    inferred: bool = False

    @property
    def weight(self) -> int:
        """What it counts towards the limit of ioctls that are kept: 1, and 1 for each KiB."""
        return 1 + (len(self.data or b"") >> 10)

    @property
    def short(self) -> str:
        """The short name: ``SREGS2``, ``NESTED``, ``get REGS``."""
        return short_name(self.name)


_SHORT = {"NESTED_STATE": "NESTED", "VCPU_EVENTS": "EVENTS"}


def short_name(name: str) -> str:
    """Shorten a name: ``KVM_SET_NESTED_STATE`` becomes ``NESTED``."""
    way, _, rest = name.removeprefix("KVM_").partition("_")
    if way not in ("SET", "GET") or not rest:
        return name.removeprefix("KVM_")
    return ("get " if way == "GET" else "") + _SHORT.get(rest, rest)


@dataclass(frozen=True, slots=True)
class Phase:
    """Successive calls with one purpose.

    :param times: repetitions, if it is part of a cycle; ``last_line`` is then that of
        the last repetition.
    :param count: calls, of all repetitions together.
    """

    kind: PhaseKind
    steps: tuple[Step, ...]
    last_line: int
    count: int
    times: int = 1

    @property
    def line(self) -> int:
        """The line of the log where it begins."""
        return self.steps[0].line

    @property
    def weight(self) -> int:
        """What its steps count towards the limit of ioctls that are kept."""
        return sum(step.weight for step in self.steps)

    @property
    def nested(self) -> tuple[Step, ...]:
        """Its KVM_SET_NESTED_STATE calls."""
        return tuple(step for step in self.steps if step.name == NESTED)

    def has(self, names: frozenset[str]) -> bool:
        """Whether it has one of these ioctls."""
        return any(step.name in names for step in self.steps)


class Splitter:
    """Splits the calls on one vCPU into phases, call by call."""

    def __init__(self) -> None:
        self.phases: list[Phase] = []
        # Number of phases at the end that are none of creation, load or reset.
        self._tail = 0
        self.kept = 0
        self.ioctls = 0
        self.runs = 0
        # The level of an open put is not known yet: it is FULL until the put ends.
        self._mode: PhaseKind | None = None
        self._steps: list[Step] = []
        self._names: set[str] = set()
        # Reads and others inside an open put, which has ended if nothing more is set.
        self._held: list[Step] = []

    def add(self, call: Call) -> None:
        """Add the next call."""
        name, data = call.name, call.data
        if not call.inferred:
            self.ioctls += 1
            self.runs += name == RUN
        steps = self._held or self._steps
        if steps and steps[-1].name == name and _same(steps[-1], call):
            last = steps[-1]
            data = data if name in READS else last.data
            steps[-1] = last._replace(count=last.count + 1, last_line=call.line, data=data)
            return
        line = call.line
        self._take(
            Step(name, call.number, line, line, 1, call.value, call.error, call.efer, None, data,
                 call.inferred)
        )  # fmt: skip
        self.kept += 1 if data is None else 1 + (len(data) >> 10)

    def exit(self, reason: int) -> None:
        """Record the exit reason of the last KVM_RUN."""
        if self._mode is PhaseKind.RUN:
            last = self._steps[-1]
            if last.count == 1 and last.exit_reason is None:
                self._steps[-1] = last._replace(exit_reason=reason)

    def finish(self) -> tuple[Phase, ...]:
        """End the last phase and return all phases."""
        self._flush()
        return tuple(self.phases)

    # --- the effect of a step on the open phase ---

    def _take(self, step: Step) -> None:
        name = step.name
        if name == RUN:
            self._add_to(PhaseKind.RUN, step)
        elif name in STATE:
            self._state(step)
        elif name in _APIC:
            self._apic(step)
        elif self._mode is PhaseKind.FULL and not self._closed():
            if name in _SETUP or name in TSC:
                self._join(step)
            else:
                self._held.append(step)
        elif name in READS:
            self._add_to(PhaseKind.GET, step)
        elif name in _SETUP or (name in TSC and self._mode in (None, PhaseKind.CREATION)):
            self._add_to(PhaseKind.CREATION, step)
        else:
            self._add_to(PhaseKind.OTHER, step)

    def _state(self, step: Step) -> None:
        if self._mode is PhaseKind.FULL:
            again = step.name in self._names and (step.name == NESTED or step.name in SREGS)
            if self._closed() and again:
                self._split(PhaseKind.FULL)
            self._join(step)
        elif self._mode is PhaseKind.CREATION and step.name in MSRS:
            self._append(step)
        elif self._mode is PhaseKind.APIC:
            if step.name in MSRS:
                self._append(step)
            else:
                # MSRs without a LAPIC after them belong to the put.
                self._split(PhaseKind.FULL)
                self._join(step)
        else:
            self._add_to(PhaseKind.FULL, step)

    def _apic(self, step: Step) -> None:
        if self._mode is PhaseKind.FULL:
            if self._names <= MSRS and not self._held:
                self._mode = PhaseKind.APIC
            elif self._closed():
                # APICBASE was set after the put and before the LAPIC.
                self._split(PhaseKind.APIC)
            else:
                self._join(step)
                return
        self._add_to(PhaseKind.APIC, step)

    def _closed(self) -> bool:
        return not (
            self._names.isdisjoint(DEBUGREGS) or self._names.isdisjoint(SREGS | REGS | {NESTED})
        )

    def _append(self, step: Step) -> None:
        self._steps.append(step)
        self._names.add(step.name)

    def _join(self, step: Step) -> None:
        if self._held:
            for one in self._held:
                self._append(one)
            self._held = []
        self._append(step)

    def _add_to(self, kind: PhaseKind, step: Step) -> None:
        # Add to the open phase if it is of this kind, else begin a new one.
        if self._mode is not kind:
            self._flush()
            self._mode = kind
        self._append(step)

    def _split(self, kind: PhaseKind) -> None:
        # Begin a new phase with the MSRS at the end of the open one.
        at = len(self._steps)
        while at and self._steps[at - 1].name in MSRS:
            at -= 1
        moved = self._steps[at:]
        del self._steps[at:]
        self._flush()
        self._mode = kind
        for one in moved:
            self._append(one)

    def _flush(self) -> None:
        if self._steps:
            steps = tuple(self._steps)
            kind = self._mode if self._mode is not PhaseKind.FULL else _put_kind(steps)
            assert kind is not None
            count = sum(step.count for step in steps)
            self.phases.append(Phase(kind, steps, steps[-1].last_line, count))
            self._tail = 0 if kind not in _RUNTIME else self._tail + 1
            self._merge_cycles()
            if self._tail >= _LONG:
                self._merge_middle()
        held, self._held = self._held, []
        self._steps = []
        self._names = set()
        self._mode = None
        for step in held:
            self._take(step)
        if held:
            self._flush()

    def _merge_cycles(self) -> None:
        # A repeated cycle is counted, not kept.
        phases = self.phases
        for size in range(1, min(_CYCLE, len(phases) // 2) + 1):
            old, new = phases[-2 * size : -size], phases[-size:]
            if all(map(_alike, old, new)):
                phases[-2 * size :] = [
                    replace(
                        one,
                        times=one.times + other.times,
                        last_line=other.last_line,
                        count=one.count + other.count,
                    )
                    for one, other in zip(old, new, strict=True)
                ]
                self.kept -= sum(phase.weight for phase in new)
                others = [at for at, phase in enumerate(new) if phase.kind not in _RUNTIME]
                self._tail = size - 1 - others[-1] if others else self._tail - size
                return

    def _merge_middle(self) -> None:
        # The middle of a long run becomes one phase.
        first = len(self.phases) - self._tail + _ENDS
        middle = self.phases[first:-_ENDS]
        runs = [phase for phase in middle if phase.kind in RUNNING]
        if not runs:
            self._tail = 0
            return
        count = sum(phase.count for phase in middle)
        mixed = Phase(PhaseKind.MIXED, runs[0].steps, middle[-1].last_line, count)
        self.phases[first:-_ENDS] = [mixed]
        self.kept += mixed.weight - sum(phase.weight for phase in middle)
        self._tail = 2 * _ENDS + 1


def _same(step: Step, call: Call) -> bool:
    if call.name == RUN and step.error in _INTERRUPTED and call.error in _INTERRUPTED:
        return True
    alike = step.error == call.error and step.efer == call.efer
    return alike and (call.name in READS or step.data == call.data)


def _alike(one: Phase, other: Phase) -> bool:
    # Puts of nested state are not merged: each is judged.
    if one.kind is not other.kind or len(one.steps) != len(other.steps):
        return False
    for a, b in zip(one.steps, other.steps, strict=True):
        if a.name != b.name or a.error != b.error or a.efer != b.efer or a.name == NESTED:
            return False
    return True


def _put_kind(steps: Sequence[Step]) -> PhaseKind:
    names = {step.name for step in steps}
    if not names.isdisjoint(TSC):
        return PhaseKind.FULL
    return PhaseKind.RUNTIME if names.isdisjoint(MP_STATE | {NESTED}) else PhaseKind.RESET
