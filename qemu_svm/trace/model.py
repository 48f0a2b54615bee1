"""Reads a log and judges it: the entry point of this room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from qemu_svm.errors import SourceError, SvmStreamError
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.results import Result
from qemu_svm.trace.calls import Call, Format, RunExit, VcpuId
from qemu_svm.trace.guess import Guess, guess
from qemu_svm.trace.judge import judge_order
from qemu_svm.trace.lines import Bytes
from qemu_svm.trace.parse import KNOWN_FORMATS, Counts, Parser
from qemu_svm.trace.phases import (
    CREATE,
    LAPIC,
    MSRS,
    NESTED,
    Phase,
    PhaseKind,
    Splitter,
)
from qemu_svm.trace.rules import NOT_SHOWN, NotShown
from qemu_svm.trace.verdict import Put, PutVerdict
from qemu_svm.trace.window import VmContext

_MEMORY = frozenset({"KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2"})
_MAKING = frozenset({"KVM_CREATE_VM", CREATE})


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
    """

    vcpu: VcpuId
    phases: tuple[Phase, ...]
    puts: tuple[Put, ...]
    ioctls: int
    runs: int
    migrated: int | None = None


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
    :param cut: line where reading ended because of a limit.
    :param damage: why the log could not be read to its end.
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
    cut: int | None = None
    damage: SvmStreamError | None = None

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
        """Whether no put breaks a rule."""
        puts = (put for vcpu in self.vcpus for put in vcpu.puts)
        return all(put.verdict is not PutVerdict.VIOLATES for put in puts)


def read_trace(log: Log, limits: Limits = DEFAULT) -> Trace:
    """Read a log and judge it.

    :raises SourceError: the log has no line of a known kind.
    """
    collector = _Collector(limits)
    parser = Parser(limits)
    cut = collector.read(parser, log)
    counts = parser.counts
    if not counts.used:
        if log.damage is not None:
            raise log.damage
        raise SourceError(
            f"'{log.path}' has no ioctl of a known kind of log (known are {KNOWN_FORMATS})"
        )
    return collector.trace(log, counts, cut)


class _Collector:
    # Collects the calls by vCPU, and counts the others.
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._vcpus: dict[VcpuId, Splitter] = {}
        self._others: dict[tuple[str, str], OtherIoctl] = {}
        self._kept = 0
        self._puts = 0

    def read(self, parser: Parser, log: Log) -> int | None:
        for call in parser.calls(log):
            if isinstance(call, RunExit):
                if call.vcpu in self._vcpus:
                    self._vcpus[call.vcpu].exit(call.reason)
                continue
            self._add(call)
            if self._kept > self._limits.trace_ioctls or self._puts > self._limits.trace_puts:
                return call.line
        return None

    def _add(self, call: Call) -> None:
        if call.vcpu is None or call.name == CREATE:
            self._count(call)
        if call.vcpu is None:
            return
        splitter = self._vcpus.get(call.vcpu)
        if splitter is None:
            if len(self._vcpus) >= self._limits.vcpus:
                self._count(call)
                return
            splitter = self._vcpus[call.vcpu] = Splitter()
        before = splitter.kept
        splitter.add(call)
        self._puts += call.name == NESTED
        self._kept += splitter.kept - before

    def _count(self, call: Call) -> None:
        key = (call.name, call.level.value)
        old = self._others.get(key)
        if old is None:
            if len(self._others) >= self._limits.trace_names:
                key = ("others", call.level.value)
            old = self._others.get(key, OtherIoctl(key[0], key[1], 0, call.line, 0))
        failed = old.failed + (call.error is not None)
        self._others[key] = OtherIoctl(old.name, old.level, old.count + 1, old.line, failed)

    def trace(self, log: Log, counts: Counts, cut: int | None) -> Trace:
        split = [(vcpu, one, one.finish()) for vcpu, one in self._vcpus.items()]
        migrated = [_migrated(phases) for _, _, phases in split]
        around = self._vm_context()
        vcpus = tuple(
            VcpuTrace(vcpu, phases, judge_order(phases, around), one.ioctls, one.runs, loaded)
            for (vcpu, one, phases), loaded in zip(split, migrated, strict=True)
        )
        return Trace(
            log.path,
            log.compression,
            counts.lines,
            tuple(sorted(counts.formats.items(), key=lambda item: -item[1])),
            counts.calls,
            counts.results,
            tuple(sorted(vcpus, key=_rank)),
            tuple(sorted(self._others.values(), key=lambda other: other.line)),
            guess([phases for _, _, phases in split], migrated),
            self._not_shown(vcpus, counts, around),
            cut,
            log.damage,
        )

    def _vm_context(self) -> VmContext:
        regions = [o.line for o in self._others.values() if o.name in _MEMORY]
        making = any(other.name in _MAKING for other in self._others.values())
        return VmContext(min(regions, default=None), making)

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
            "efer": bool(sregs) and all(step.efer is not None for step in sregs),
            "results": counts.results > 0,
            "vm": around.vm or around.memory is not None,
        }
        return tuple(one for one in NOT_SHOWN if not seen.get(one.key, False))


def _rank(vcpu: VcpuTrace) -> tuple[int, int, int]:
    index = vcpu.vcpu.index
    return (1 << 32 if index is None else index, vcpu.vcpu.fd or 0, vcpu.vcpu.created or 0)


def _migrated(phases: Sequence[Phase]) -> int | None:
    # The put of a loaded stream follows the APIC's own writes and precedes the first
    # KVM_RUN; the vCPU had a full put before, when it was created.
    full = [at for at, phase in enumerate(phases) if phase.kind is PhaseKind.FULL]
    for at in reversed(full[1:]):
        load = phases[at - 1]
        if load.kind is PhaseKind.APIC and load.has(LAPIC) and load.has(MSRS):
            return at
    return None
