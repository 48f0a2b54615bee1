"""Reads a log and judges it: the entry point of this room."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from qemu_svm.errors import SourceError, SvmStreamError
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.nested import bits
from qemu_svm.recording.records import Header
from qemu_svm.results import Result
from qemu_svm.trace.by_value import guest_mode
from qemu_svm.trace.calls import Call, Format, RunExit, VcpuId
from qemu_svm.trace.guess import Guess, guess
from qemu_svm.trace.judge import judge_order, judge_without
from qemu_svm.trace.lines import Bytes
from qemu_svm.trace.parse import KNOWN_FORMATS, Counts, Parser
from qemu_svm.trace.phases import (
    CREATE,
    LAPIC,
    MSRS,
    NESTED,
    READS,
    RUN,
    RUNNING,
    Phase,
    PhaseKind,
    Splitter,
)
from qemu_svm.trace.refusals import Refusal, Watcher, compare_lists, of_the_vm
from qemu_svm.trace.rules import NOT_SHOWN, NotShown
from qemu_svm.trace.verdict import Content, Put, PutVerdict, RuleResult
from qemu_svm.trace.window import VmContext

if TYPE_CHECKING:
    from qemu_svm.model.profile import Profile
    from qemu_svm.trace.recorded import Recorded

_MEMORY = frozenset({"KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2"})
_MAKING = frozenset({"KVM_CREATE_VM", CREATE})
_TOLD = frozenset({"KVM_GET_SREGS", "KVM_GET_SREGS2", "KVM_GET_REGS", "KVM_GET_NESTED_STATE"})
_MOST_READ = 4096
_NESTED_CAPABILITY = frozenset({"KVM_CAP_NESTED_STATE", "157", "0x9d"})


class Log(Bytes, Protocol):
    """A log to read: :class:`qemu_svm.source.Source` is one."""

    path: str
    compression: str
    damage: SourceError | None


@dataclass(frozen=True, slots=True)
class VcpuTrace:
    """One vCPU of a log.

    :param ioctls: number of its ioctls; ``runs`` of them are KVM_RUN.
    :param migrated: number of the phase that puts the state of a loaded stream, if any.
    :param refusals: ioctls that failed.
    :param results: rules that the vCPU breaks apart from its puts of nested state.
    """

    vcpu: VcpuId
    phases: tuple[Phase, ...]
    puts: tuple[Put, ...]
    ioctls: int
    runs: int
    migrated: int | None = None
    refusals: tuple[Refusal, ...] = ()
    results: tuple[RuleResult, ...] = ()

    @property
    def contents(self) -> tuple[Content, ...]:
        """Every call that puts something and whose data the log has, in order.

        Of a cycle that is repeated, the first.
        """
        known = {one.step.line: one for put in self.puts for one in put.contents}
        return tuple(
            known.get(step.line) or Content(step)
            for phase in self.phases
            for step in phase.steps
            if step.data is not None and step.name not in READS
        )


@dataclass(frozen=True, slots=True)
class OtherIoctl:
    """An ioctl of the VM, the system or a device, with its number of calls."""

    name: str
    level: str
    count: int
    line: int
    failed: int


@dataclass(frozen=True, slots=True, repr=False)
class Trace(Result):
    """A whole log.

    :param formats: lines of each kind of log, most frequent first.
    :param not_shown: what the log cannot show.
    :param refusals: ioctls of the VM and the system that failed.
    :param cut: line where reading ended because of a limit.
    :param damage: why the log could not be read to its end.
    :param header: of a recording; None of other logs.
    :param lost: calls that the recorder lost.
    """

    verb: ClassVar[str] = "trace"
    path: str
    compression: str
    lines: int
    formats: tuple[tuple[Format, int], ...]
    calls: int
    results: int
    vcpus: tuple[VcpuTrace, ...]
    others: tuple[OtherIoctl, ...]
    guess: Guess
    not_shown: tuple[NotShown, ...]
    refusals: tuple[Refusal, ...] = ()
    cut: int | None = None
    damage: SvmStreamError | None = None
    header: Header | None = None
    lost: int = 0

    @property
    def used(self) -> int:
        """Lines that were recognised."""
        return sum(count for _, count in self.formats)

    @property
    def complete(self) -> bool:
        """Whether the log was read to its end."""
        return self.cut is None and self.damage is None

    @property
    def clean(self) -> bool:
        """Whether no put of nested state, no refusal and nothing else breaks a rule."""
        puts = (put for vcpu in self.vcpus for put in vcpu.puts)
        others = [one for vcpu in self.vcpus for one in vcpu.results]
        return (
            all(put.verdict is not PutVerdict.VIOLATES for put in puts)
            and not any(one.bad for one in self.all_refusals)
            and not any(one.bad for one in others)
        )

    @property
    def all_refusals(self) -> tuple[Refusal, ...]:
        """Those of all vCPUs, then those of the VM and the system."""
        return (*(one for vcpu in self.vcpus for one in vcpu.refusals), *self.refusals)


def read_trace(log: Log, limits: Limits = DEFAULT) -> Trace:
    """Read a log and judge it.

    :raises SourceError: the log has no line of a known kind.
    """
    collector = _Collector(limits)
    parser = Parser(limits)
    cut = collector.read(parser, log)
    counts = parser.counts
    if not counts.used and parser.recorded is None:
        if log.damage is not None:
            raise log.damage
        raise SourceError(
            f"'{log.path}' has no ioctl of a known kind of log (known are {KNOWN_FORMATS})",
            hint="svmstream why FILE explains error messages and other logs",
        )
    return collector.trace(log, parser, cut)


@dataclass(slots=True)
class _Other:
    line: int
    count: int = 0
    failed: int = 0


class _Collector:
    # Collects the calls by vCPU, and counts the others.
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._vcpus: dict[VcpuId, Splitter] = {}
        self._others: dict[tuple[str, str], _Other] = {}
        self._watchers: dict[VcpuId, Watcher] = {}
        self._failed: dict[tuple[str, str], Call] = {}
        self._memory = False
        self._vm = False
        self._no_nested = False
        self._kept = 0
        self._puts = 0
        self._reads: dict[VcpuId, dict[str, Call]] = {}
        self._in_l2: dict[bytes, int] = {}

    def read(self, parser: Parser, log: Log) -> int | None:
        with closing(parser.calls(log)) as calls:
            return self._all(calls)

    def _all(self, calls: Iterable[Call | RunExit]) -> int | None:
        for call in calls:
            if isinstance(call, RunExit):
                if call.vcpu in self._vcpus:
                    self._vcpus[call.vcpu].exit(call.reason)
                    self._watchers[call.vcpu].exit(call)
                continue
            self._add(call)
            if self._kept > self._limits.trace_ioctls or self._puts > self._limits.trace_puts:
                return call.line
        return None

    def _add(self, call: Call) -> None:
        vcpu, name = call.vcpu, call.name
        if vcpu is None or name == CREATE:
            self._count(call)
        if vcpu is None:
            return
        splitter = self._vcpus.get(vcpu)
        if splitter is None:
            if len(self._vcpus) >= self._limits.vcpus:
                self._count(call)
                return
            splitter = self._vcpus[vcpu] = Splitter()
            self._watchers[vcpu] = Watcher(self._limits.trace_names)
        if name in _TOLD:
            if call.data is not None:
                self._read(call)
        elif name == RUN:
            self._reads.pop(vcpu, None)
        memory = self._memory or (False if self._vm else None)
        self._watchers[vcpu].add(call, memory=memory)
        before = splitter.kept
        splitter.add(call)
        self._puts += name == NESTED
        self._kept += splitter.kept - before

    def _read(self, call: Call) -> None:
        # SREGS and REGS of a vCPU are L2's if its nested state, read with them, is in guest mode.
        assert call.vcpu is not None
        assert call.data is not None
        held = self._reads.setdefault(call.vcpu, {})
        if call.name != "KVM_GET_NESTED_STATE":
            held[call.name] = call
        elif call.data[:1] and call.data[0] & bits.GUEST_MODE:
            for one in held.values():
                if len(self._in_l2) < _MOST_READ:
                    self._in_l2.setdefault(one.data or b"", one.line)
            held.clear()

    def _count(self, call: Call) -> None:
        name, error = call.name, call.error
        old = self._others.get((name, call.level.value))
        if old is not None and error is None and not call.argument and name not in _MEMORY:
            old.count += 1
            return
        self._vm = self._vm or name in _MAKING
        self._memory = self._memory or (name in _MEMORY and error is None)
        if call.argument in _NESTED_CAPABILITY and call.value == 0:
            self._no_nested = True
        if call.error not in (None, "EINTR") and len(self._failed) < self._limits.trace_names:
            self._failed.setdefault((call.name, call.error or ""), call)
        if old is None:
            key = (name, call.level.value)
            if len(self._others) >= self._limits.trace_names:
                key = ("others", call.level.value)
            old = self._others.setdefault(key, _Other(call.line))
        old.count += 1
        old.failed += error is not None

    def trace(self, log: Log, parser: Parser, cut: int | None) -> Trace:
        counts, recorded = parser.counts, parser.recorded
        split = [(vcpu, one, one.finish()) for vcpu, one in self._vcpus.items()]
        migrated = [_migrated(phases) for _, _, phases in split]
        around = self._vm_context(recorded)
        guessed = guess([phases for _, _, phases in split], migrated)
        compare_lists(tuple(self._watchers.values()))
        restores = not (guessed.clues or guessed.contradictory or self._no_nested)
        vcpus = tuple(
            VcpuTrace(
                vcpu, phases, judge_order(phases, around), one.ioctls, one.runs, loaded,
                self._watchers[vcpu].refusals(),
                _joined(self._watchers[vcpu].results(restores=restores), judge_without(phases)),
            )
            for (vcpu, one, phases), loaded in zip(split, migrated, strict=True)
        )  # fmt: skip
        return Trace(
            log.path,
            log.compression,
            counts.lines,
            tuple(sorted(counts.formats.items(), key=lambda item: -item[1])),
            counts.calls,
            counts.results,
            tuple(sorted(vcpus, key=_rank)),
            tuple(
                OtherIoctl(name, level, one.count, one.line, one.failed)
                for (name, level), one in sorted(
                    self._others.items(), key=lambda item: item[1].line
                )
            ),
            guessed,
            self._not_shown(vcpus, counts, around),
            of_the_vm(tuple(self._failed.values()), memory=self._memory or None),
            cut,
            log.damage or parser.damage,
            None if recorded is None else recorded.header,
            0 if recorded is None else recorded.lost,
        )

    def _vm_context(self, recorded: Recorded | None) -> VmContext:
        regions = [one.line for (name, _), one in self._others.items() if name in _MEMORY]
        making = any(name in _MAKING for name, _ in self._others)
        release = "" if recorded is None else recorded.header.release
        kernel = _kernel(release)
        return VmContext(min(regions, default=None), making, kernel, self._in_l2)

    def _not_shown(
        self, vcpus: Sequence[VcpuTrace], counts: Counts, around: VmContext
    ) -> tuple[NotShown, ...]:
        sregs = [
            step
            for vcpu in vcpus
            for put in vcpu.puts
            for step in put.order
            if step.name.startswith("KVM_SET_SREGS")
        ]
        seen = {
            "data": any(put.contents for vcpu in vcpus for put in vcpu.puts),
            "kernel": around.kernel is not None,
            "efer": bool(sregs) and all(step.efer is not None for step in sregs),
            "results": counts.results > 0,
            "vm": around.vm or around.memory is not None,
        }
        return tuple(one for one in NOT_SHOWN if not seen.get(one.key, False))


def _joined(ones: Sequence[RuleResult], others: Sequence[RuleResult]) -> tuple[RuleResult, ...]:
    # Each rule once, but one that is broken several times.
    known = {one.rule.id for one in ones}
    return (*ones, *(one for one in others if one.rule.id not in known))


def _kernel(release: str) -> Profile | None:
    if not release:
        return None
    from qemu_svm.model.kernels.derive import profile_of
    from qemu_svm.model.kernels.release import parse_if_any

    found = parse_if_any(release)
    return None if found is None else profile_of(found)


def _rank(vcpu: VcpuTrace) -> tuple[int, int, int]:
    index = vcpu.vcpu.index
    return (1 << 32 if index is None else index, vcpu.vcpu.fd or 0, vcpu.vcpu.created or 0)


def _migrated(phases: Sequence[Phase]) -> int | None:
    loaded = _loaded(phases)
    if loaded is not None:
        return loaded
    # By data: the first put in guest mode before the first KVM_RUN.
    for at, phase in enumerate(phases):
        if phase.kind in RUNNING:
            break
        if any(guest_mode(step) for step in phase.nested):
            return at
    return None


def _loaded(phases: Sequence[Phase]) -> int | None:
    # The put of a loaded stream follows the APIC's own writes and precedes the first
    # KVM_RUN; the vCPU had a full put before, when it was created.
    full = [at for at, phase in enumerate(phases) if phase.kind is PhaseKind.FULL]
    for at in reversed(full[1:]):
        load = phases[at - 1]
        if load.kind is PhaseKind.APIC and load.has(LAPIC) and load.has(MSRS):
            return at
    return None
