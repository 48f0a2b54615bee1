"""A stream judged by the rules: which kernels would accept it, which would not.

The checks are not written again: the stream is restored in the model, in the
order of a QEMU, and the check that stops it is the finding.  Advisories are
predicates on what the stream holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from qemu_svm.findings.consistency import Violation, consistency
from qemu_svm.findings.rules import RULES
from qemu_svm.findings.verdict import Judgement, Verdict, judge
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.machine.memory import backed
from qemu_svm.model import plan as plans
from qemu_svm.model.area import RESET
from qemu_svm.model.kvm.vcpu import Host
from qemu_svm.model.profiles import PROFILES, Profile
from qemu_svm.model.saved import Saved, areas, from_vcpu, guest_cpuid
from qemu_svm.model.simulate import Simulation, simulate
from qemu_svm.nested import bits

_NPT = 1
_SOFT_EVENT = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that a stream meets or breaks, and on which kernels."""

    rule: str
    message: str
    kernels: tuple[str, ...]
    offset: int | None = None
    severity: str = ""

    @property
    def level(self) -> str:
        """Severity: that of the rule unless it says otherwise."""
        return self.severity or RULES[self.rule].severity


@dataclass(frozen=True, slots=True)
class Report:
    """What was found, and each vCPU's verdict by kernel."""

    findings: tuple[Finding, ...]
    verdicts: Mapping[int, Mapping[str, Judgement]] = field(default_factory=dict)


FIELDS: Mapping[str, str] = {
    "SV-05": "vmcb_pa",
    "SV-06": "size",
    "SET-03": "size",
    "SET-04": "flags",
    "SET-05": "flags",
    "SV-01": "format",
    "SV-02": "flags",
    "C-01": "control.intercepts",
    "C-02": "control.asid",
    "C-03": "control.nested_ctl",
    "C-03b": "control.nested_cr3",
    "C-04": "control.msrpm_base_pa",
    "C-05": "control.iopm_base_pa",
    "C-06": "control.tlb_ctl",
    "C-07": "control.int_ctl",
    "C-08": "control.event_inj",
    "SV-11": "l1_save.cr0",
    "SV-12": "l1_save.efer",
    "SV-13": "l1_save.cr0",
    "SV-14": "l1_save.rflags",
    "S-01": "l1_save.efer",
    "S-02": "l1_save.cr0",
    "S-03": "l1_save.cr0",
    "S-04": "l1_save.dr6",
    "S-05": "l1_save.cr4",
    "S-06": "l1_save.cr0",
    "S-07": "l1_save.cr3",
    "S-09": "l1_save.cs.attrib",
    "S-10": "l1_save.cr4",
    "S-11": "l1_save.efer",
}
"""The field of the nested state that a check looks at."""

_REGISTERS = {
    "SV-03": "efer",
    "SV-03b": "efer",
    "SV-10": "cr0",
    "SV-16": "cr3",
    "R-01": "efer",
    "R-02": "cr3",
    "R-03": "cr4",
    "R-04": "cr0",
    "R-05": "efer",
}


def check(
    machine: Machine,
    kernels: Iterable[Profile],
    *,
    plan: str = "qemu",
    maxphyaddr: int = 40,
    npt: bool = True,
) -> Report:
    """Judge every vCPU of a stream for every kernel.

    :param plan: the order of the restore, see :mod:`qemu_svm.model.plan`.
    :param maxphyaddr: guest address width in bits.
    :param npt: whether the destination's host uses nested paging.
    """
    kernels = list(kernels)
    found = [_plain(violation) for violation in consistency(machine)]
    steps = plans.parse(plan)
    verdicts: dict[int, dict[str, Judgement]] = {}
    for vcpu in machine.vcpus:
        if vcpu.nested is not None and not vcpu.nested.is_svm:
            continue
        saved = from_vcpu(vcpu)
        host = Host(npt=npt, bsp=vcpu.index == 0, cpuid=guest_cpuid(saved, maxphyaddr))
        failures: dict[str, list[str]] = {}
        for kernel in kernels:
            simulation = simulate(
                kernel, saved, steps, host=host, backed=lambda a, n: _known(machine, a, n)
            )
            verdict = judge(simulation)
            verdicts.setdefault(vcpu.index, {})[kernel.name] = verdict
            for rule in _failed(simulation):
                failures.setdefault(rule, []).append(kernel.name)
        found += [_check_finding(vcpu, rule, names) for rule, names in failures.items()]
        found += _advisories(machine, vcpu, saved, kernels)
    return Report(tuple(found), verdicts)


def _known(machine: Machine, address: int, size: int) -> bool:
    return not machine.blocks or backed(machine, address, size)


def _plain(violation: Violation) -> Finding:
    return Finding(violation.rule, violation.message, (), violation.offset)


def _failed(simulation: Simulation) -> list[str]:
    # What follows a failure is its consequence; the first one counts.
    return [result.failed for result in simulation.results if result.failed][:1]


def _check_finding(vcpu: Vcpu, rule: str, kernels: list[str]) -> Finding:
    words = RULES[rule].fails_when
    text, offset = "", None
    if rule in FIELDS and vcpu.nested is not None:
        node = vcpu.nested.tree().resolve(FIELDS[rule])
        if node is not None:
            offset = node.offset
            value = f"{node.value:#x}" if isinstance(node.value, int) else ""
            text = f" ({FIELDS[rule]} {value})" if value else f" ({FIELDS[rule]})"
    elif rule in _REGISTERS and _REGISTERS[rule] in vcpu.registers:
        register = vcpu.registers[_REGISTERS[rule]]
        offset = register.offset
        text = f" ({_REGISTERS[rule]} {vcpu.get(_REGISTERS[rule]):#x})"
    message = f"vCPU {vcpu.index}: {words}{text}: {RULES[rule].means}"
    return Finding(rule, message, tuple(kernels), offset)


_Predicate = Callable[[Machine, Vcpu, Saved], bool]


def _guest(saved: Saved) -> bool:
    return saved.guest_mode


def _control(vcpu: Vcpu, name: str) -> int:
    if vcpu.nested is None or not vcpu.nested.vmcb:
        return 0
    value = vcpu.nested.control[name]
    return int(value) if isinstance(value, int) else 0


def _soft_event(vcpu: Vcpu) -> bool:
    event = _control(vcpu, "event_inj")
    return bool(event & bits.EVENT_VALID) and event >> 8 & 7 in (_SOFT_EVENT, 3)


def _pae(vcpu: Vcpu) -> bool:
    paging, pae, long_mode = 1 << 31, 1 << 5, 1 << 10
    return bool(
        vcpu.get("cr0") & paging and vcpu.get("cr4") & pae and not vcpu.get("efer") & long_mode
    )


def _any(vcpu: Vcpu, *names: str) -> bool:
    if vcpu.nested is None or not vcpu.nested.vmcb:
        return False
    save = vcpu.nested.l1_save
    return any(save[name] for name in names)


def _hyperv(vcpu: Vcpu) -> bool:
    if vcpu.nested is None or not vcpu.nested.vmcb:
        return False
    area = vcpu.nested.control.hv_enlightenments
    return bool(area.control or area.partition_assist_page)


def _intercepts(saved: Saved, name: str) -> bool:
    words = areas(saved.blob.vmcb, RESET)[0].get("intercepts")
    return bool(words & bits.INTERCEPTS.mask(name))


_ADVISORIES: Mapping[str, _Predicate] = {
    "A-01": lambda _m, _v, s: _guest(s) and _intercepts(s, "MSR_PROT"),
    "A-02": lambda _m, v, s: _guest(s) and _soft_event(v) and bool(_control(v, "next_rip")),
    "A-03": lambda _m, v, s: v.smm and not _guest(s),
    "O-10": lambda _m, v, s: _guest(s) and bool(s.blob.flags & bits.RUN_PENDING) and _soft_event(v),
    "O-18": lambda _m, v, s: v.smm and not _guest(s),
    "O-19": lambda _m, v, s: _guest(s) and not v.gif,
    "O-20": lambda _m, _v, s: s.blob.flags == 0 and not s.sregs.get("efer") & 1 << 12,
    "O-21": lambda _m, _v, s: _guest(s) and bool(s.blob.flags & bits.RUN_PENDING),
    "O-23": lambda _m, v, s: _guest(s) and _pae(v) and v.section.child("cpu/pdptrs") is None,
    "O-28": lambda _m, v, s: _guest(s) and bool(_control(v, "nested_ctl") & _NPT),
    "O-29": lambda _m, v, s: _guest(s) and _hyperv(v),
    "O-30": lambda _m, v, s: (
        _guest(s) and _any(v, "s_cet", "ssp", "isst_addr", "dbgctl", "br_from", "br_to")
    ),
}
_SEVERITY = {"O-20": "info"}


def _advisories(
    machine: Machine, vcpu: Vcpu, saved: Saved, kernels: list[Profile]
) -> Iterator[Finding]:
    for rule, applies in _ADVISORIES.items():
        concerned = RULES[rule].kernels
        names = tuple(k.name for k in kernels if not concerned or k.name in concerned)
        if names and applies(machine, vcpu, saved):
            words = RULES[rule]
            message = f"vCPU {vcpu.index}: {words.fails_when}: {words.means}"
            yield Finding(rule, message, names, None, _SEVERITY.get(rule, ""))


def summary(report: Report, index: int) -> str:
    """One sentence about a vCPU: who accepts it, who does not."""
    verdicts = report.verdicts.get(index, {})
    groups: dict[str, list[str]] = {}
    for name, judgement in verdicts.items():
        kind = "accepted by" if judgement.verdict is Verdict.RIGHT else judgement.verdict.value
        groups.setdefault(kind, []).append(name)
    return "; ".join(f"{kind} {ranges(names)}" for kind, names in groups.items())


def ranges(names: Iterable[str]) -> str:
    """Names of kernels with neighbours joined: ``5.8 to 5.11, 6.1``."""
    order = list(PROFILES)
    runs: list[list[int]] = []
    for place in sorted(order.index(name) for name in names):
        if runs and runs[-1][-1] + 1 == place:
            runs[-1].append(place)
        else:
            runs.append([place])
    return ", ".join(
        order[run[0]] if len(run) == 1 else f"{order[run[0]]} to {order[run[-1]]}" for run in runs
    )
