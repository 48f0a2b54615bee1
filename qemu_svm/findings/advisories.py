"""Known bugs and limitations that a stream would meet: rules with their predicates.

A predicate sees one vCPU; the rule says which kernels are concerned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qemu_svm.findings.conditions import nested_paging, soft_event
from qemu_svm.findings.fixes import FIXES
from qemu_svm.machine import Vcpu
from qemu_svm.model.kernels.changes import Side
from qemu_svm.model.kernels.release import Release
from qemu_svm.model.kernels.table import BY_ID
from qemu_svm.model.profile import Profile, RunPending
from qemu_svm.model.profiles import PROFILES, RELEASED
from qemu_svm.model.saved import Saved
from qemu_svm.nested import bits
from qemu_svm.rules import Finding, Rule, RuleKind, Severity
from qemu_svm.trace.rules import rule as order_rule

_SVME = 1 << 12

_Predicate = Callable[[Vcpu, Saved], bool]


@dataclass(frozen=True, slots=True)
class Advisory:
    """A rule, and whether a vCPU meets it.

    :param applies: None if nothing in a stream can show it.
    :param severity: of the finding; None for the rule's own.
    """

    rule: Rule
    applies: _Predicate | None = None
    severity: Severity | None = None


def _l2_uses_pae(vcpu: Vcpu) -> bool:
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
    words = saved.control().get("intercepts")
    return bool(words & bits.INTERCEPTS.mask(name))


def _run_pending(saved: Saved) -> bool:
    return bool(saved.nested.flags & bits.RUN_PENDING)


def _released(wanted: Callable[[Profile], bool]) -> tuple[str, ...]:
    return tuple(name for name in RELEASED if wanted(PROFILES[name]))


def _has(change: str, kernel: Profile) -> bool:
    return BY_ID[change].is_in(Release(*kernel.numbers))


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
        lambda _v, s: s.guest_mode and _intercepts(s, "MSR_PROT"),
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
        lambda _v, s: s.guest_mode and soft_event(s) and bool(s.control().get("next_rip")),
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
        lambda v, s: v.smm and not s.guest_mode,
    ),
)
"""Bugs that do not depend on the order of the ioctls."""

DATA_ORDERS: tuple[Advisory, ...] = (
    Advisory(
        Rule(
            "O-10",
            Severity.WARNING,
            RuleKind.ORDER,
            "a soft event is pending for L2 and L1 lacks NRIPS",
            "5.18 to 7.0 take the return address from the wrong RIP",
            "use a kernel with the fix of 2026",
            "commit a0592461f39c",
            _released(
                lambda kernel: (
                    "next_rip" in kernel.control_fields and not _has("next-rip-at-run", kernel)
                )
            ),
        ),
        lambda _v, s: s.guest_mode and _run_pending(s) and soft_event(s),
    ),
    Advisory(
        Rule(
            "O-14",
            Severity.INFO,
            RuleKind.ORDER,
            "TSC_RATIO is set after nested state",
            "L2's TSC offset keeps the old ratio",
            "set it before",
            "derived from nested.c",
        ),
    ),
    Advisory(
        Rule(
            "O-18",
            Severity.WARNING,
            RuleKind.ORDER,
            "the source was in SMM, perhaps entered from L2",
            "the nested state is not in guest mode; SMRAM carries L2's context",
            "do not force guest mode",
            "svm.c",
        ),
        lambda v, s: v.smm and not s.guest_mode,
    ),
    Advisory(
        Rule(
            "O-19",
            Severity.WARNING,
            RuleKind.ORDER,
            "GIF is clear",
            "5.10 to 5.12 restore it as set in guest mode",
            "use another kernel",
            "commit 063ab16c14db",
            _released(lambda kernel: kernel.ignores_gif),
        ),
        lambda v, s: s.guest_mode and not v.gif,
    ),
    Advisory(
        Rule(
            "O-20",
            Severity.WARNING,
            RuleKind.ORDER,
            "flags is 0 and EFER.SVME is clear",
            "kernels before 7.0 refuse this (SV-03)",
            "pass flags 0x100 to them",
            "commit 6f4d3ebc24c6",
            _released(lambda kernel: "SV-03" in kernel.set_nested_state),
        ),
        lambda _v, s: s.nested.flags == 0 and not s.sregs.get("efer") & _SVME,
        Severity.INFO,
    ),
    Advisory(
        Rule(
            "O-21",
            Severity.WARNING,
            RuleKind.ORDER,
            "RUN_PENDING is set",
            "up to 5.10 it is lost, and the event of L1's VMRUN may be dropped",
            "use 5.11 or later",
            "commit 81f76adad560",
            _released(lambda kernel: kernel.run_pending is RunPending.IGNORED),
        ),
        lambda _v, s: s.guest_mode and _run_pending(s),
    ),
    Advisory(
        Rule(
            "O-23",
            Severity.WARNING,
            RuleKind.ORDER,
            "L2 uses PAE paging and the stream has no PDPTRs from SREGS2",
            "the PDPTEs may be read with L1's translation",
            "use SREGS2 with PDPTRS_VALID",
            "nested.c",
        ),
        lambda v, s: s.guest_mode and _l2_uses_pae(v) and v.section.child("cpu/pdptrs") is None,
    ),
    Advisory(
        Rule(
            "O-24",
            Severity.INFO,
            RuleKind.ORDER,
            "L2 has its own PAT (quirk disabled)",
            "QEMU does not migrate hdr.svm.gpat",
            "leave the quirk enabled",
            "nested.c, 7.2",
            _released(lambda kernel: "SV-17" in kernel.set_nested_state),
        ),
    ),
    Advisory(
        order_rule("O-28"),
        lambda _v, s: s.guest_mode and nested_paging(s),
    ),
    Advisory(
        Rule(
            "O-29",
            Severity.INFO,
            RuleKind.ORDER,
            "L1 uses Hyper-V enlightenments",
            "they are lost until L1's next VMRUN",
            "",
            "nested.c svm_get_nested_state",
        ),
        lambda v, s: s.guest_mode and _hyperv(v),
    ),
    Advisory(
        Rule(
            "O-30",
            Severity.INFO,
            RuleKind.ORDER,
            "the save area has shadow stack or LBR state of L1",
            "kernels before 7.0 ignore it",
            "use 7.x",
            "nested.c svm_copy_vmrun_state",
            _released(lambda kernel: "erap_ctl" not in kernel.control_fields),
        ),
        lambda v, s: (
            s.guest_mode and _any(v, "s_cet", "ssp", "isst_addr", "dbgctl", "br_from", "br_to")
        ),
    ),
)
"""Rules about order that depend on what a stream holds.  Traces cannot show these, but
for O-28, which is a trace's rule as well."""


def advisories(
    vcpu: Vcpu, saved: Saved, kernels: Sequence[Profile], source: Profile | None = None
) -> Iterator[Finding]:
    """Find the advisories that a vCPU meets on some of these kernels.

    :param source: the kernel that saved it, if it is known.
    """
    for one in (*ADVISORIES, *DATA_ORDERS):
        rule = one.rule
        names = tuple(k.name for k in kernels if not rule.kernels or k.row in rule.kernels)
        if names and one.applies is not None and one.applies(vcpu, saved):
            message = f"vCPU {vcpu.index}: {rule.fails_when}: {rule.means}"
            yield rule.finding(message, kernels=names, severity=one.severity)
    for fix in FIXES:
        if fix.applies is None or not fix.applies(vcpu, saved):
            continue
        concerned = [k.name for k in kernels if fix.side is not Side.SOURCE and fix.concerns(k)]
        saving = source is not None and fix.side is not Side.DESTINATION and fix.concerns(source)
        if concerned or saving:
            by = f" (saved by {source.name})" if source is not None and saving else ""
            message = f"vCPU {vcpu.index}: {fix.rule.fails_when}: {fix.rule.means}{by}"
            yield fix.rule.finding(message, kernels=tuple(concerned))


def known_bugs(kernel: Profile) -> list[Rule]:
    """Rules that name this kernel: its bugs and limitations."""
    return [one.rule for one in (*DATA_ORDERS, *ADVISORIES) if kernel.row in one.rule.kernels]
