"""Bugs of KVM that a change repaired: rules with their predicates.

Which kernels have the change is in :mod:`qemu_svm.model.kernels.table`; a rule names it.
A predicate sees one vCPU; a rule without one is looked up by its number (``check
--explain``), or shows in a trace or on a host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qemu_svm.findings.conditions import nested_paging, soft_event
from qemu_svm.machine import Vcpu
from qemu_svm.model.kernels.changes import Side
from qemu_svm.model.kernels.release import Release
from qemu_svm.model.kernels.table import BY_ID
from qemu_svm.model.profile import Profile
from qemu_svm.model.saved import Saved
from qemu_svm.nested import bits
from qemu_svm.rules import Rule, RuleKind, Severity

_LBR_ENABLE = 1
_AVIC = 0xC000_0000
_PG, _PAE, _LMA = 1 << 31, 1 << 5, 1 << 10

_Predicate = Callable[[Vcpu, Saved], bool]


@dataclass(frozen=True, slots=True)
class Fix:
    """A rule, the change that repairs it, and whether a vCPU meets it.

    :param applies: None if nothing in a stream shows it.
    """

    rule: Rule
    applies: _Predicate | None = None

    @property
    def side(self) -> Side:
        """Whose kernel has to contain the change."""
        return BY_ID[self.rule.change].side

    def concerns(self, kernel: Profile) -> bool:
        """Whether a kernel lacks the change; a proposal counts as having it."""
        return any(kernel.numbers) and not BY_ID[self.rule.change].is_in(Release(*kernel.numbers))


def _stale_next_rip(saved: Saved) -> bool:
    return saved.control().get("next_rip") in (0, saved.regs["rip"])


def _l1_uses_pae(saved: Saved) -> bool:
    l1 = saved.l1()
    return bool(l1.get("cr0") & _PG and l1.get("cr4") & _PAE and not l1.get("efer") & _LMA)


def _lbr(vcpu: Vcpu, saved: Saved) -> bool:
    debugctl = vcpu.nested.l1_save["dbgctl"] if vcpu.nested is not None and vcpu.nested.vmcb else 0
    return bool(saved.control().get("virt_ext") & _LBR_ENABLE or int(debugctl) & _LBR_ENABLE)


def _hyperv(vcpu: Vcpu) -> bool:
    if vcpu.nested is None or not vcpu.nested.vmcb:
        return False
    return bool(vcpu.nested.control.hv_enlightenments.control)


def _rule(number: str, severity: Severity, change: str, when: str, means: str) -> Rule:
    fixed = BY_ID[change]
    named = [*fixed.cve, *(f"commit {one}" for one in fixed.commits)]
    return Rule(
        number, severity, RuleKind.ADVISORY, when, means,
        f"use a kernel with the fix: {fixed.fixed_in}",
        ", ".join(named) or fixed.source,
        scope=f"without the fix ({fixed.fixed_in})", change=change,
    )  # fmt: skip


FIXES: tuple[Fix, ...] = (
    Fix(
        _rule(
            "K-01", Severity.WARNING, "next-rip-synced",
            "a soft event is pending for L2 and NextRIP is 0 or L2's RIP",
            "the source did not save NextRIP: a wrong return address is pushed",
        ),
        lambda _v, s: s.guest_mode and soft_event(s) and _stale_next_rip(s),
    ),
    Fix(
        _rule(
            "K-02", Severity.WARNING, "next-rip-after-run",
            "a soft event is pending for L2 without RUN_PENDING",
            "NextRIP of L1's last VMRUN is used: a wrong return address is pushed",
        ),
        lambda _v, s: s.guest_mode
        and soft_event(s)
        and not s.nested.flags & bits.RUN_PENDING,
    ),
    Fix(
        _rule(
            "K-03", Severity.WARNING, "lbr-msrs-saved", "L1 or L2 uses LBR virtualization",
            "the LBR MSRs are not saved and restored",
        ),
        lambda v, s: s.guest_mode and _lbr(v, s),
    ),
    Fix(
        _rule(
            "K-04", Severity.INFO, "lbr-clean-bit", "L1 uses LBR virtualization for L2",
            "#VMEXIT clears the LBR clean bit in vmcb12",
        ),
        lambda _v, s: s.guest_mode and bool(s.control().get("virt_ext") & _LBR_ENABLE),
    ),
    Fix(
        _rule(
            "K-05", Severity.WARNING, "ncr3-low-bits",
            "L1 uses PAE paging and nested_cr3 has bits set below bit 5",
            "PDPTEs are read beyond L1's page directory pointer table",
        ),
        lambda _v, s: s.guest_mode
        and nested_paging(s)
        and _l1_uses_pae(s)
        and bool(s.control().get("nested_cr3") & 0x1F),
    ),
    Fix(
        _rule(
            "K-06", Severity.WARNING, "int-ctl-bits", "int_ctl has AVIC bits set",
            "L2 runs with AVIC and may read and write memory of the host",
        ),
        lambda _v, s: s.guest_mode and bool(s.control().get("int_ctl") & _AVIC),
    ),
    Fix(
        _rule(
            "K-07", Severity.INFO, "hyperv-flush",
            "L1 uses Hyper-V enlightenments without nested paging",
            "flush hypercalls of L2 use the wrong addresses",
        ),
        lambda v, s: s.guest_mode and _hyperv(v) and not nested_paging(s),
    ),
    Fix(
        _rule(
            "K-08", Severity.INFO, "rsm-checks-controls",
            "the source was in SMM, perhaps entered from L2",
            "RSM does not check vmcb12's controls",
        ),
        lambda v, s: v.smm and not s.guest_mode,
    ),
    Fix(
        _rule(
            "K-09", Severity.WARNING, "shadow-synced",
            "L2's interrupt shadow was not saved by the source",
            "an interrupt is delivered too early; L2 may hang in HLT",
        )
    ),
    Fix(
        _rule(
            "K-10", Severity.WARNING, "l1-cr3-triple-fault",
            "L1's CR3 or its PDPTEs cannot be loaded at #VMEXIT",
            "L1 goes on with damaged state",
        )
    ),
    Fix(
        _rule(
            "K-11", Severity.INFO, "vmmcall-intercepted", "L1 does not intercept VMMCALL",
            "a hypercall of L2 reaches the wrong hypervisor",
        )
    ),
    Fix(
        _rule(
            "K-12", Severity.INFO, "active-msr-bitmap", "L1 intercepts MSRs",
            "the wrong MSR bitmap is consulted while L2 runs",
        )
    ),
    Fix(
        _rule(
            "K-13", Severity.WARNING, "controls-cached-first",
            "L1 changes the intercepts of vmcb12 during VMRUN",
            "L2 runs without the VMRUN intercept and can take over the host",
        )
    ),
    Fix(
        _rule(
            "K-14", Severity.WARNING, "vmload-intercepted",
            "L1 does not intercept VMLOAD or VMSAVE of L2",
            "L2 reads and writes physical memory of the host",
        )
    ),
    Fix(
        _rule(
            "K-15", Severity.WARNING, "leave-on-reset", "a vCPU is reset or freed in guest mode",
            "the host uses vmcb02 after it was freed",
        )
    ),
    Fix(
        _rule(
            "K-16", Severity.WARNING, "avic-inhibited",
            "the destination's kvm_amd has avic=1 and the vCPU is in guest mode",
            "L2 runs with AVIC active",
        )
    ),
    Fix(
        _rule(
            "K-17", Severity.WARNING, "x2apic-intercepts",
            "the host's kvm_amd has avic=1 with x2AVIC, and L2 runs",
            "L1 reads and writes x2APIC MSRs of the host",
        )
    ),
    Fix(
        _rule(
            "K-18", Severity.WARNING, "x2avic-intercepts",
            "the host's kvm_amd has avic=1 with x2AVIC",
            "a guest reads and writes x2APIC MSRs of the host",
        )
    ),
    Fix(
        _rule(
            "K-19", Severity.INFO, "vmcb02-dirty", "nested state is set again in guest mode",
            "the processor may use fields of vmcb02 that it has cached",
        )
    ),
    Fix(
        _rule(
            "K-20", Severity.WARNING, "pages-retried",
            "KVM_RUN fails because L1's MSR bitmap cannot be read",
            "the next KVM_RUN runs L2 without L1's MSR intercepts",
        )
    ),
    Fix(
        _rule(
            "K-21", Severity.INFO, "failed-vmrun-controls", "a VMRUN of vmcb02 fails",
            "pending events of L2 are lost",
        )
    ),
    Fix(
        _rule(
            "K-22", Severity.INFO, "failed-vmrun-tlb", "a VMRUN fails",
            "a pending TLB flush is lost",
        )
    ),
    Fix(
        _rule(
            "K-23", Severity.INFO, "cr3-failure-warn",
            "KVM_SET_NESTED_STATE fails at L2's CR3 (SV-16)",
            "the host prints a WARN, and panics with panic_on_warn",
        )
    ),
    Fix(
        _rule(
            "K-24", Severity.INFO, "tsc-of-l1", "L1 scales L2's TSC",
            "L1's TSC is wrong after #VMEXIT",
        )
    ),
    Fix(
        _rule(
            "K-25", Severity.INFO, "guest-mode-before-mmu", "L1 uses nested paging for L2",
            "L2's MMU may get the wrong role",
        )
    ),
    Fix(
        _rule(
            "K-26", Severity.INFO, "lma-ignored-at-vmrun", "vmcb12 has EFER.LMA without LME",
            "KVM's MMU gets a mode that does not exist",
        )
    ),
)  # fmt: skip
"""Bugs that a change of the table repaired and that no other rule tells."""


CHANGE_OF: dict[str, str] = {
    "A-01": "msr-bitmap-merged",
    "A-02": "next-rip",
    "A-03": "hsave-needed",
    "C-03b": "ncr3-checked",
    "C-06": "tlb-control",
    "C-07": "vnmi",
    "C-08": "event-inj-checked",
    "O-10": "next-rip-at-run",
    "O-19": "gif-restored",
    "O-20": "gif-without-svme",
    "O-21": "run-pending-restored",
    "O-28": "nested-migration-null",
    "R-04": "sregs-cr0",
    "R-05": "sregs-efer",
    "S-09": "cs-checked",
    "SV-18": "lma-without-lme",
}
"""The change that brought a check or repaired what another rule tells."""


def rules_of(change: str) -> tuple[str, ...]:
    """Ids of the rules that a change brought or repaired."""
    own = [one.rule.id for one in FIXES if one.rule.change == change]
    return (*own, *(rule for rule, named in CHANGE_OF.items() if named == change))
