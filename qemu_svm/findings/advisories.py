"""Known bugs and limitations that a stream would meet: rules with their predicates.

A predicate sees one vCPU; the rule says which kernels are concerned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from qemu_svm.findings import conditions as c
from qemu_svm.findings.advisory import Advisory, Case, Met
from qemu_svm.findings.fixes import FIXES
from qemu_svm.machine import Vcpu
from qemu_svm.model.kernels.changes import Side
from qemu_svm.model.kernels.release import Release
from qemu_svm.model.kernels.table import BY_ID
from qemu_svm.model.profile import Profile, RunPending
from qemu_svm.model.profiles import PROFILES, RELEASED
from qemu_svm.rules import Finding, Rule, RuleKind, Severity
from qemu_svm.trace.rules import rule as order_rule
from qemu_svm.x86.registers import uses_pae

_SVME = 1 << 12


def _l2_uses_pae(vcpu: Vcpu) -> bool:
    return uses_pae(vcpu.get("cr0"), vcpu.get("cr4"), vcpu.get("efer"))


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


def _released(wanted: Callable[[Profile], bool]) -> tuple[str, ...]:
    return tuple(name for name in RELEASED if wanted(PROFILES[name]))


def _has(change: str, kernel: Profile) -> bool:
    return BY_ID[change].is_in(Release(*kernel.numbers))


def _data(rule_id: str, kernels: tuple[str, ...]) -> Rule:
    return replace(order_rule(rule_id), kernels=kernels)


ADVISORIES: tuple[Advisory, ...] = (
    Advisory(
        Rule(
            "A-01",
            Severity.WARNING,
            RuleKind.ADVISORY,
            "L1 intercepts MSRs",
            "L2's MSR accesses are not intercepted after the restore",
            "use 5.9 or later",
            "commit 772b81bb2f9b",
            ("5.8",),
        ),
        lambda k: k.saved.guest_mode and c.intercepts(k.saved, "MSR_PROT"),
        common=True,
    ),
    Advisory(
        Rule(
            "A-02",
            Severity.WARNING,
            RuleKind.ADVISORY,
            "a soft event with NextRIP is pending for L2",
            "kernels before 5.19 lose NextRIP and push a wrong return address",
            "use 5.19 or later",
            "commit 00f08d99dd7d",
            _released(lambda kernel: "next_rip" not in kernel.control_fields),
        ),
        lambda k: (
            k.saved.guest_mode and c.soft_event(k.saved) and bool(k.saved.control().get("next_rip"))
        ),
    ),
    Advisory(
        # The series that made VMRUN look at VM_HSAVE_PA made SMM entry use it as well (5.14).
        Rule(
            "A-03",
            Severity.WARNING,
            RuleKind.ADVISORY,
            "the source was in SMM, perhaps entered from L2",
            "up to 5.13, on the source or on the destination, SMRAM does not carry L1's state",
            "save again outside SMM, or use 5.14 or later",
            "measured on 5.10; commit 37be407b2ce8",
            _released(lambda kernel: not kernel.vmrun.hsave_needed),
        ),
        lambda k: k.vcpu.smm and not k.saved.guest_mode,
    ),
)
"""Bugs that do not depend on the order of the ioctls."""

DATA_ORDERS: tuple[Advisory, ...] = (
    Advisory(
        _data(
            "O-10",
            _released(
                lambda kernel: (
                    "next_rip" in kernel.control_fields and not _has("next-rip-at-run", kernel)
                )
            ),
        ),
        lambda k: k.saved.guest_mode and c.run_pending(k.saved) and c.soft_event(k.saved),
    ),
    Advisory(
        order_rule("O-14"),
        unseen="a trace shows that MSRS come after NESTED_STATE (O-11), not which MSRs they are",
    ),
    Advisory(
        order_rule("O-18"),
        lambda k: k.vcpu.smm and not k.saved.guest_mode,
    ),
    Advisory(
        _data("O-19", _released(lambda kernel: kernel.ignores_gif)),
        lambda k: k.saved.guest_mode and not k.vcpu.gif,
    ),
    Advisory(
        _data("O-20", _released(lambda kernel: "SV-03" in kernel.set_nested_state)),
        lambda k: (
            Met(severity=Severity.INFO)
            if k.saved.nested.flags == 0
            and k.knows_registers
            and not k.saved.sregs.get("efer") & _SVME
            else None
        ),
    ),
    Advisory(
        _data("O-21", _released(lambda kernel: kernel.run_pending is RunPending.IGNORED)),
        lambda k: k.saved.guest_mode and c.run_pending(k.saved),
    ),
    Advisory(
        order_rule("O-23"),
        lambda k: (
            k.saved.guest_mode
            and _l2_uses_pae(k.vcpu)
            and k.vcpu.section.child("cpu/pdptrs") is None
        ),
    ),
    Advisory(
        _data("O-24", _released(lambda kernel: "SV-17" in kernel.set_nested_state)),
        unseen="no stream has hdr.svm.gpat, and none says whether the quirk is disabled",
    ),
    Advisory(
        order_rule("O-28"),
        lambda k: k.saved.guest_mode and c.nested_paging(k.saved),
        common=True,
    ),
    Advisory(
        order_rule("O-29"),
        lambda k: k.saved.guest_mode and _hyperv(k.vcpu),
    ),
    Advisory(
        _data("O-30", _released(lambda kernel: "erap_ctl" not in kernel.control_fields)),
        lambda k: (
            k.saved.guest_mode
            and _any(k.vcpu, "s_cet", "ssp", "isst_addr", "dbgctl", "br_from", "br_to")
        ),
    ),
)
"""Rules about order that depend on what a stream, or a recording, holds; their words are
in :mod:`qemu_svm.trace.rules`."""


EVERY: tuple[Advisory, ...] = (*DATA_ORDERS, *ADVISORIES, *FIXES)
"""All of them, in the order in which ``check --rules`` lists them."""

BY_RULE: Mapping[str, Advisory] = MappingProxyType({one.rule.id: one for one in EVERY})
"""The same by the id of the rule."""

COMMON = frozenset(one.rule.id for one in EVERY if one.common)
"""Rules that ordinary streams meet."""


def concerned_by(kernels: Sequence[Profile]) -> Mapping[str, tuple[str, ...]]:
    """Names of the destinations that each advisory concerns, by the id of its rule."""
    return {
        one.rule.id: tuple(kernel.name for kernel in kernels if one.concerns(kernel))
        for one in EVERY
        if one.side is not Side.SOURCE
    }


def advisories(
    case: Case,
    concerned_of: Mapping[str, tuple[str, ...]],
    source: Profile | None = None,
    *,
    named: bool = True,
) -> Iterator[Finding]:
    """Find the advisories that a vCPU meets on some kernels.

    :param concerned_of: the destinations, see :func:`concerned_by`.
    :param source: the kernel that saved it, if it is known.
    :param named: the kernels are the reader's; if not, what ordinary streams meet is
        information, however bad it is on the kernels concerned.
    """
    for one in (*ADVISORIES, *DATA_ORDERS, *FIXES):
        concerned = concerned_of.get(one.rule.id, ())
        saved_by = source if source is not None and one.side is not Side.DESTINATION else None
        if not concerned and one.side is Side.DESTINATION:
            continue
        met = one.met(case)
        if met is None:
            continue
        saving = met.certain if source is None else saved_by is not None and one.concerns(source)
        if not concerned and not saving:
            continue
        by = f" (saved by {saved_by.name})" if saved_by is not None and saving else ""
        detail = f" ({met.detail})" if met.detail else ""
        rule = one.rule
        message = f"vCPU {case.vcpu.index}: {rule.fails_when}{detail}: {rule.means}{by}"
        severity = Severity.INFO if one.common and not named else met.severity
        yield rule.finding(message, kernels=concerned, severity=severity)


def known_bugs(kernel: Profile) -> list[Rule]:
    """Rules that name this kernel: its bugs and limitations."""
    return [one.rule for one in (*DATA_ORDERS, *ADVISORIES) if kernel.row in one.rule.kernels]
