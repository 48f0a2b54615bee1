"""Every ioctl that KVM refused, why probably, and what the program did then.

A vCPU is watched call by call, whether or not nested state is put.  An ioctl that fails
and later succeeds (a buffer that was too small, SREGS after SREGS2) was a question, not
a fault.  Reads, puts of state and KVM_RUN are judged; other ioctls, with which programs
probe for features, are only listed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from qemu_svm.kvm.numbers import Level
from qemu_svm.rules import Rule, Severity
from qemu_svm.trace.calls import Call, RunExit
from qemu_svm.trace.causes import EFER_SVME, Cause, Circumstances, causes
from qemu_svm.trace.phases import (
    CPUID,
    CREATE,
    EVENTS,
    LAPIC,
    MSRS,
    NESTED,
    READS,
    REGS,
    RUN,
    SREGS,
    STATE,
)
from qemu_svm.trace.rules import rule
from qemu_svm.trace.verdict import RuleOutcome, RuleResult, result

_GET_NESTED = "KVM_GET_NESTED_STATE"
_GET_SREGS = frozenset({"KVM_GET_SREGS", "KVM_GET_SREGS2"})
_SAVED = frozenset({"KVM_GET_REGS", "KVM_GET_MSRS", "KVM_GET_VCPU_EVENTS"})
_TOLD = _SAVED | {"SVME"}
_SREGS_OR_MSRS = SREGS | MSRS
_LOOKED_AT = frozenset({"KVM_CHECK_EXTENSION", "KVM_SET_MSRS", "KVM_GET_MSRS"})
_LISTS = 64
_INTERRUPTED = frozenset({"EINTR", "EAGAIN"})
_TSC = frozenset({"KVM_SET_TSC_KHZ"})
_SET = (STATE | CPUID | LAPIC | _TSC) - {"KVM_SET_GUEST_DEBUG", "KVM_XEN_VCPU_SET_ATTR"}
_READ = READS - {"KVM_XEN_VCPU_GET_ATTR", "KVM_GET_ONE_REG"}
_INSTEAD: Mapping[str, frozenset[str]] = {
    "KVM_SET_SREGS2": SREGS,
    "KVM_GET_SREGS2": _GET_SREGS,
    "KVM_SET_CPUID2": CPUID,
    "KVM_GET_XSAVE2": frozenset({"KVM_GET_XSAVE2", "KVM_GET_XSAVE"}),
}
_OF_VM = frozenset(
    {
        *("KVM_CREATE_VM", CREATE, "KVM_CREATE_IRQCHIP"),
        *("KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2"),
    }
)
_EXITS = {9: "FAIL_ENTRY", 17: "INTERNAL_ERROR"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An ioctl that failed, once or several times in the same way.

    :param last_line: where it failed last.
    :param error: name of the errno.
    :param rule: the rule that it breaks; None if a program may ask and be refused.
    :param causes: why KVM refused it, the likeliest first.
    :param ran: line of the KVM_RUN that came without it.
    :param resolved: line where it succeeded before that.
    """

    line: int
    last_line: int
    count: int
    name: str
    error: str
    level: Level
    rule: Rule | None = None
    causes: tuple[Cause, ...] = ()
    ran: int | None = None
    resolved: int | None = None

    @property
    def severity(self) -> Severity:
        """``INFO`` if nothing is wrong with it."""
        return Severity.INFO if self.rule is None else self.rule.trace_severity

    @property
    def bad(self) -> bool:
        """Whether it counts as a violation."""
        return self.severity is not Severity.INFO


@dataclass(slots=True)
class _Known:
    # What happened on a vCPU so far.
    created: bool = False
    cpuid: bool = False
    put: bool = False
    nested: bool = False
    nested_seen: bool = False
    svme: bool | None = None
    efer_put: bool = False
    ran: int | None = None
    efer_line: int | None = None
    first: set[str] = field(default_factory=set)
    reads: set[str] = field(default_factory=set)
    dropped: int | None = None
    msrs: list[tuple[int, int]] = field(default_factory=list)


class Watcher:
    """Watches the calls on one vCPU.

    :param limit: different failures that are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known = _Known()
        self._found: dict[tuple[str, str], Refusal] = {}
        self._results: dict[tuple[str, str], RuleResult] = {}
        self._learned: set[str] = set()  # calls of which another one says nothing new

    def add(self, call: Call, *, memory: bool | None) -> None:
        """Watch the next call.

        :param memory: whether a memory region was set; None if the log lacks the VM's ioctls.
        """
        name = call.name
        if name == RUN:
            self._run(call)
        if call.error is not None or self._found or name in _LOOKED_AT:
            self._result(call, memory=memory)
        if call.error is not None or name not in self._learned:
            self._learn(call)

    def exit(self, found: RunExit) -> None:
        """Watch how KVM_RUN ended."""
        if found.reason in _EXITS:
            self._keep(
                result(
                    "T-07", RuleOutcome.VIOLATED, found.line,
                    f"{RUN} returned with {_EXITS[found.reason]}",
                )
            )  # fmt: skip

    def refusals(self) -> tuple[Refusal, ...]:
        """What failed, in the order of the log."""
        return tuple(_judged(one) for one in self._found.values())

    def results(self, *, restores: bool) -> tuple[RuleResult, ...]:
        """Rules about the vCPU as a whole that it breaks.

        :param restores: the program is not QEMU, which always puts the nested state of a KVM
            that has it, and KVM does not say that it has none.
        """
        return (*self._dropped(restores=restores), *self._results.values())

    @property
    def lists(self) -> tuple[tuple[int, int], ...]:
        """Line and result of each KVM_SET_MSRS of unknown length before the first KVM_RUN."""
        return tuple(self._known.msrs)

    def shorter(self, longest: Sequence[int]) -> None:
        """Compare KVM_SET_MSRS with the same calls on the other vCPUs.

        :param longest: the largest result of each call.
        """
        for (line, value), most in zip(self._known.msrs, longest, strict=True):
            if 0 < value < most:
                note = f"KVM_SET_MSRS returned {value}, and {most} for another vCPU"
                self._keep(result("T-05", RuleOutcome.VIOLATED, line, note))

    def _run(self, call: Call) -> None:
        known = self._known
        known.ran = call.line if known.ran is None else known.ran
        known.reads = set()
        for key, one in self._found.items():
            if one.resolved is None and one.ran is None and one.name in _SET:
                self._found[key] = replace(one, ran=call.line)

    def _result(self, call: Call, *, memory: bool | None) -> None:
        if call.name == "KVM_CHECK_EXTENSION":
            self._wrong(call)  # it is not an ioctl of vCPUs
        elif call.error is not None:
            if call.name != RUN or call.error not in _INTERRUPTED:
                self._refused(call, memory=memory)
        elif call.value is not None:
            self._succeeded(call)

    def _wrong(self, call: Call) -> None:
        about = f" ({call.argument})" if call.argument else ""
        failed = f" and failed with {call.error}" if call.error else ""
        note = f"{call.name}{about} was called on a vCPU{failed}"
        self._keep(result("T-06", RuleOutcome.VIOLATED, call.line, note))

    def _refused(self, call: Call, *, memory: bool | None) -> None:
        assert call.error is not None
        key = (call.name, call.error)
        old = self._found.get(key)
        if old is not None:
            self._found[key] = replace(
                old, count=old.count + 1, last_line=call.line, ran=None, resolved=None
            )
        elif len(self._found) < self._limit:
            why = causes(call.name, call.error, self._circumstances(call, memory=memory))
            self._found[key] = Refusal(
                call.line, call.line, 1, call.name, call.error, call.level, causes=why
            )

    def _circumstances(self, call: Call, *, memory: bool | None) -> Circumstances:
        known = self._known
        begun = known.created
        return Circumstances(
            cpuid=known.cpuid or (False if begun else None),
            ran=known.ran is not None or (False if begun else None),
            nested=known.nested or (False if begun else None),
            put=known.put,
            svme=False if begun and not known.efer_put else known.svme,
            efer=call.efer,
            memory=memory,
            on=call.on,
        )

    def _succeeded(self, call: Call) -> None:
        for key, one in self._found.items():
            same = call.name in _INSTEAD.get(one.name, frozenset({one.name}))
            if same and one.resolved is None and one.ran is None:
                self._found[key] = replace(one, resolved=call.line)
        if call.name in ("KVM_SET_MSRS", "KVM_GET_MSRS"):
            self._msrs(call)

    def _msrs(self, call: Call) -> None:
        value = call.value or 0
        if value and (call.asked is None or value >= call.asked):
            return
        if call.asked == 0:
            return
        of = f"of {call.asked} MSRs" if call.asked is not None else "MSRs, the first is refused"
        note = f"{call.name} returned {value}: {value} {of}"
        self._keep(result("T-05", RuleOutcome.VIOLATED, call.line, note))

    def _keep(self, one: RuleResult) -> None:
        # The first of each rule and note.
        if len(self._results) < self._limit:
            self._results.setdefault((one.rule.id, one.note), one)

    def _learn(self, call: Call) -> None:
        known, name = self._known, call.name
        if name == CREATE:
            known.created = True
            return
        if name in (NESTED, _GET_NESTED):
            known.nested_seen = True
        if call.error is not None:
            return
        known.cpuid = known.cpuid or name in CPUID
        known.put = known.put or name in STATE
        known.nested = known.nested or name == NESTED
        if known.ran is None:
            known.first.add(name)
            if (
                name in MSRS
                and call.value is not None
                and call.asked is None
                and len(known.msrs) < _LISTS
            ):
                known.msrs.append((call.line, call.value))
        if name in _SREGS_OR_MSRS:
            known.efer_put = True
        if name in SREGS:
            known.svme = None if call.efer is None else bool(call.efer & EFER_SVME)
            if known.svme and known.ran is None and (known.created or known.cpuid):
                known.efer_line = call.line
        if name in READS and known.dropped is None:
            self._read(call)
        elif known.ran is not None and name not in SREGS and len(self._learned) < _LISTS:
            self._learned.add(name)

    def _read(self, call: Call) -> None:
        known = self._known
        known.reads.add(call.name)
        if call.name in _GET_SREGS and call.efer is not None and call.efer & EFER_SVME:
            known.reads.add("SVME")
        if known.reads >= _TOLD:
            known.dropped = call.line

    def _dropped(self, *, restores: bool) -> tuple[RuleResult, ...]:
        # A VMM that knows nothing of nested state.
        known = self._known
        if known.nested_seen:
            return ()
        if known.efer_line is not None and known.ran is not None:
            note = f"SREGS with SVME are put at line {known.efer_line}"
            return (result("T-04", RuleOutcome.VIOLATED, known.efer_line, note),)
        if known.dropped is not None:
            note = "SREGS with SVME, REGS, MSRS and VCPU_EVENTS are read"
            return (result("T-04", RuleOutcome.VIOLATED, known.dropped, note),)
        whole = all(known.first & names for names in (SREGS, REGS, MSRS, EVENTS))
        begun = known.created or known.cpuid
        if restores and whole and begun and known.ran is not None and known.svme is None:
            note = (
                f"a whole state is put before KVM_RUN at line {known.ran}; the log does not show "
                "whether EFER has SVME"
            )
            return (result("T-04", RuleOutcome.VIOLATED, known.ran, note),)
        return ()


def _judged(one: Refusal) -> Refusal:
    if one.resolved is not None:
        return one
    if one.name == RUN:
        return replace(one, rule=rule("T-07"))
    if one.name in _SET:
        return replace(one, rule=rule("T-02" if one.ran is None else "T-01"))
    return replace(one, rule=rule("T-08")) if one.name in _READ else one


def compare_lists(watchers: Sequence[Watcher]) -> None:
    """Compare the MSRs that the vCPUs of a log took: programs give each the same lists."""
    alike: dict[int, list[Watcher]] = {}
    for one in watchers:
        alike.setdefault(len(one.lists), []).append(one)
    for group in alike.values():
        longest = [
            max(value for _, value in calls)
            for calls in zip(*(w.lists for w in group), strict=True)
        ]
        for one in group:
            one.shorter(longest)


def of_the_vm(calls: Sequence[Call], *, memory: bool | None) -> tuple[Refusal, ...]:
    """Judge calls on the VM and the system that failed: the first of each kind."""
    found = []
    for call in calls:
        assert call.error is not None
        why = causes(call.name, call.error, Circumstances(memory=memory, on=call.on))
        wrong = any(cause.rule == "T-06" for cause in why)
        judged = rule("T-06") if wrong else rule("T-02") if call.name in _OF_VM else None
        found.append(
            Refusal(call.line, call.line, 1, call.name, call.error, call.level, judged, why)
        )
    return tuple(found)
