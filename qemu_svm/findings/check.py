"""A stream judged by the rules: which kernels would accept it, which would not.

The checks are not written again: the stream is restored in the model, in the
order of a QEMU, and the check that stops it is the finding.  Advisories are
predicates on what the stream holds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from qemu_svm.findings.advisories import COMMON, advisories, concerned_by
from qemu_svm.findings.advisory import Case
from qemu_svm.findings.consistency import consistency
from qemu_svm.findings.looks import Looks
from qemu_svm.findings.qemus import cpu_finding, qemu_findings, qemu_plan
from qemu_svm.findings.recorded import (
    adapted_findings,
    differs_from_model,
    recorded_findings,
    recorded_kernel,
)
from qemu_svm.findings.recorded_verdict import judge_recorded
from qemu_svm.findings.rules import RULES
from qemu_svm.findings.verdict import Judgement, Verdict
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.machine.paths import vcpu_tree
from qemu_svm.memory.layout import backing
from qemu_svm.model.partial import no_vmcb
from qemu_svm.model.profile import Profile
from qemu_svm.model.profiles import ranges
from qemu_svm.model.recorded import adapted
from qemu_svm.model.scenario import Scenario, scenario
from qemu_svm.model.simulate import Simulation
from qemu_svm.rules import Finding, Rule, Severity

if TYPE_CHECKING:
    from qemu_svm.memory.memory import GuestMemory


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check.

    :param verdicts: of each vCPU with SVM state, by its number and the kernel's name.
    :param known: of each vCPU, errors and warnings about kernels: the ids of the rules, by
        the kernel's name.
    :param bare: numbers of the vCPUs that have no nested state.
    """

    findings: tuple[Finding, ...]
    verdicts: Mapping[int, Mapping[str, Judgement]] = field(default_factory=dict)
    known: Mapping[int, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    bare: frozenset[int] = frozenset()


def check(
    machine: Machine,
    kernels: Iterable[Profile],
    *,
    plan: str | None = None,
    qemu: str | None = None,
    source: Profile | None = None,
    maxphyaddr: int = 40,
    npt: bool = True,
    cpu: str | None = None,
    memory: Callable[[], GuestMemory] | None = None,
    named: bool = True,
    saved: Machine | None = None,
) -> Report:
    """Judge every vCPU of a stream for every kernel.

    :param plan: the order of the restore, see :mod:`qemu_svm.model.plans`; None for that of
        the destination's QEMU.
    :param qemu: version of the destination's QEMU, such as ``7.2``; None if it is not known.
    :param source: the kernel that saved the stream; None if it is not known.
    :param maxphyaddr: guest address width in bits.
    :param npt: whether the destination's host uses nested paging.
    :param cpu: the CPU model of the destination, see :mod:`qemu_svm.x86.cpu_models`.
    :param memory: makes the index of RAM, for rules that look there; None if it is not read.
    :param named: the kernels are those that the reader asked about, not all.
    :param saved: the stream that a recorded put was to restore: the put is judged by it.
    :raises PlanError: ``plan``, ``qemu`` or ``cpu`` cannot be understood.
    """
    kernels = list(kernels)
    if plan is None and qemu is not None and machine.form is None:
        plan = qemu_plan(qemu)
    found = list(consistency(machine))
    exists, looks = backing(saved or machine), Looks(memory)
    concerned, judged = concerned_by(kernels), _Judged(kernels)
    verdicts: dict[int, dict[str, Judgement]] = {}
    known: dict[int, dict[str, tuple[str, ...]]] = {}
    for vcpu in machine.vcpus:
        if _not_judged(vcpu):
            continue
        original = None if saved is None else saved.vcpu(vcpu.index)
        restore = scenario(machine, vcpu, plan, npt=npt, maxphyaddr=maxphyaddr, cpu=cpu,
                           backed=exists, saved=original)  # fmt: skip
        found += recorded_findings(vcpu, original)
        for kernel in recorded_kernel(vcpu, kernels if named else ()):
            found += differs_from_model(vcpu, restore.steps, restore.simulate(kernel))
        verdicts[vcpu.index], failures, lacking = judged.on_all(restore, vcpu, original)
        found += adapted_findings(vcpu, lacking)
        found += [_check_finding(vcpu, RULES[rule], names) for rule, names in failures.items()]
        without_svm = None if machine.form else cpu_finding(vcpu, restore.host.cpuid)
        found += [] if without_svm is None else [without_svm]
        case = Case(vcpu, restore.saved, restore.host.cpuid, npt, exists, looks)
        advised = list(advisories(case, concerned, source, named=named))
        known[vcpu.index] = {
            kernel.name: tuple(
                one.rule for one in advised if _is_reservation(one) and kernel.name in one.kernels
            )
            for kernel in kernels
        }
        found += advised
    if qemu is not None:
        found += qemu_findings(machine, qemu)
    bare = frozenset(vcpu.index for vcpu in machine.vcpus if vcpu.nested is None)
    return Report(tuple(found), verdicts, known, bare)


def _not_judged(vcpu: Vcpu) -> bool:
    # State of another vendor, or without what a restore takes; what a VMM put on an AMD host is
    # judged, whatever it is.
    if vcpu.put is not None and vcpu.put.vendor == "amd":
        return False
    return (vcpu.nested is not None and not vcpu.nested.is_svm) or no_vmcb(vcpu)


_Answers = tuple[dict[str, Judgement], dict[str, list[str]], dict[str, list[str]]]


class _Judged:
    """Judgements of one plan; most vCPUs of a large machine have equal values."""

    def __init__(self, kernels: Sequence[Profile]) -> None:
        self._kernels = kernels
        self._known: dict[Hashable, _Answers] = {}

    def on_all(self, restore: Scenario, vcpu: Vcpu, saved: Vcpu | None) -> _Answers:
        """By the kernel's name; which kernels each failed check stops first, and what they lack."""
        key = (restore.saved.values, restore.host, restore.steps, vcpu.put)
        if key not in self._known:
            judgements, failures, lacking = self._known.setdefault(key, ({}, {}, {}))
            own = recorded_kernel(vcpu, ())
            for kernel in self._kernels:
                fitting = restore
                if vcpu.put is not None and kernel not in own:
                    steps, without = adapted(restore.steps, kernel)
                    fitting = replace(restore, steps=steps)
                    for what in without:
                        lacking.setdefault(what, []).append(kernel.name)
                simulation = fitting.simulate(kernel)
                judgements[kernel.name] = judge_recorded(simulation, vcpu, saved)
                for rule in _failed(simulation):
                    failures.setdefault(rule, []).append(kernel.name)
        return self._known[key]


def _is_reservation(finding: Finding) -> bool:
    # What ordinary streams meet may be shown as information, and is bad all the same.
    own = RULES[finding.rule].severity if finding.rule in COMMON else finding.severity
    return own is not Severity.INFO


def _failed(simulation: Simulation) -> list[str]:
    # Later failures are consequences of the first one.
    return [result.failed for result in simulation.results if result.failed][:1]


def _check_finding(vcpu: Vcpu, rule: Rule, kernels: Sequence[str]) -> Finding:
    text, offset, path = "", None, ""
    node = vcpu_tree(vcpu).resolve(rule.field) if rule.field else None
    if node is not None:
        offset, path = node.offset, f"vcpu{vcpu.index}.{rule.field}"
        value = f" {node.value:#x}" if isinstance(node.value, int) else ""
        text = f" ({rule.field.partition('.')[2]}{value})"
    message = f"vCPU {vcpu.index}: {rule.fails_when}{text}: {rule.means}"
    return rule.finding(message, offset, path=path, kernels=tuple(kernels))


def summary(report: Report, index: int) -> str:
    """One sentence about a vCPU: who accepts it, with what reservations, who does not."""
    verdicts = report.verdicts.get(index, {})
    if index in report.bare and all(one.verdict is Verdict.RIGHT for one in verdicts.values()):
        return "no nested state, so there is nothing for a kernel to refuse"
    known = report.known.get(index, {})
    groups: dict[str, list[str]] = {}
    for name, judgement in verdicts.items():
        kind = judgement.verdict.value
        if judgement.verdict is Verdict.OPEN:
            kind = "accepted, without a run, by"
        elif judgement.verdict is Verdict.RIGHT:
            kind = "accepted by"
            if known.get(name):
                kind = f"accepted with {', '.join(known[name])} by"
        groups.setdefault(kind, []).append(name)
    return "; ".join(f"{kind} {ranges(names)}" for kind, names in groups.items())
