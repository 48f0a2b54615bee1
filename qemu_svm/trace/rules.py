"""The rules a restore of nested SVM state must keep, as far as a trace shows them.

``KVM_SET_NESTED_STATE`` brings L1's save area and what L1 asked for L2; L2's
own registers come by SREGS, REGS, MSRS and VCPU_EVENTS.  When the blob says
"guest mode", KVM copies the whole vmcb01 save area into vmcb02 before it
replaces L1's part of vmcb01 by the blob's, so SREGS put before it become L2's,
and SREGS put after it go to vmcb02 directly.  What is never put is not an error
for KVM: the vCPU then runs with whatever was there.

Source of the rules: Linux ``arch/x86/kvm/svm/nested.c``
(``svm_set_nested_state``, ``nested_vmcb02_prepare_control``), ``svm/svm.c``
(``svm_set_efer``, ``svm_leave_nested``) and ``x86.c`` of 5.10, 6.1, 6.12 and
7.2, and the orders tried on kvm-amd of Linux 5.10.223, 6.1.176, 6.12.107 and
7.2.12 (``measured`` below means that).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad it is if the rule is broken."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    :param rule: what must be, in a few words.
    :param broken: what happens otherwise.
    :param advice: what to do.
    :param kernels: which Linux versions it is about.
    :param source: where it comes from.
    """

    id: str
    severity: Severity
    rule: str
    broken: str
    advice: str
    kernels: str
    source: str


ALL_KERNELS = "5.8 and later"
"""Every kernel that restores nested SVM state."""

_NESTED_C = "Linux arch/x86/kvm/svm/nested.c"
_MEASURED = "measured"

RULES: tuple[Rule, ...] = (
    Rule(
        "O-01",
        Severity.ERROR,
        "EFER.SVME is set, by SREGS or MSRS, before NESTED_STATE",
        "KVM answers EINVAL to nested state in guest mode while EFER.SVME is clear",
        "put SREGS2 (or SREGS) before NESTED_STATE, as QEMU does since 5.1",
        ALL_KERNELS,
        f"{_NESTED_C} svm_set_nested_state; {_MEASURED}",
    ),
    Rule(
        "O-02",
        Severity.WARNING,
        "CPUID2 before SREGS",
        "Linux 7.2 refuses EFER.SVME, and every kernel CR4 bits, that CPUID does not offer",
        "set CPUID2 right after KVM_CREATE_VCPU",
        "7.2; CR4 on all",
        f"Linux arch/x86/kvm/x86.c __set_sregs; {_MEASURED}",
    ),
    Rule(
        "O-03",
        Severity.ERROR,
        "CPUID2 before NESTED_STATE",
        "nested state is checked against a CPUID without SVM: EINVAL (5.12 and before: unchecked)",
        "set CPUID2 right after KVM_CREATE_VCPU",
        "5.13 and later",
        f"{_NESTED_C} nested_vmcb_check_save; {_MEASURED}",
    ),
    Rule(
        "O-04",
        Severity.ERROR,
        "no CPUID2 after NESTED_STATE",
        "with nested paging the MMU of L2 is thrown away: KVM_RUN fails with EFAULT on 6.1 and "
        "never returns on 6.12, even if nothing changed; 7.2 refuses a CPUID that differs",
        "set CPUID2 before any state, and not again",
        "6.1, 6.12 (probably from 5.14); 7.2 if it differs",
        f"Linux arch/x86/kvm/mmu/mmu.c kvm_mmu_after_set_cpuid; {_MEASURED}",
    ),
    Rule(
        "O-05",
        Severity.ERROR,
        "L2's SREGS are put before KVM_RUN",
        "L2 runs on the page tables and segments that were there, and its next exit writes "
        "them into vmcb12; no error",
        "put L2's SREGS before or after NESTED_STATE",
        ALL_KERNELS,
        f"{_NESTED_C} nested_svm_vmexit; {_MEASURED}",
    ),
    Rule(
        "O-06",
        Severity.INFO,
        "SREGS before NESTED_STATE become L2's",
        "",
        "",
        ALL_KERNELS,
        f"{_NESTED_C} svm_set_nested_state (vmcb01.save is copied to vmcb02); {_MEASURED}",
    ),
    Rule(
        "O-07",
        Severity.INFO,
        "SREGS after NESTED_STATE go to L2's VMCB",
        "",
        "",
        ALL_KERNELS,
        f"Linux arch/x86/kvm/svm/svm.c; {_MEASURED}",
    ),
    Rule(
        "O-08",
        Severity.WARNING,
        "SREGS after NESTED_STATE keep EFER.SVME",
        "guest mode is dropped without an error, GDT and IDT of that call are lost",
        "put L2's EFER with SVME, as KVM_GET_SREGS gave it",
        ALL_KERNELS,
        f"Linux arch/x86/kvm/svm/svm.c svm_set_efer; {_MEASURED}",
    ),
    Rule(
        "O-09",
        Severity.ERROR,
        "L2's REGS are put before KVM_RUN",
        "L2 runs with a RIP, RSP and RAX that are not its own; no error",
        "put L2's REGS before or after NESTED_STATE",
        ALL_KERNELS,
        f"Linux arch/x86/kvm/x86.c (L1 and L2 share the registers); {_MEASURED}",
    ),
    Rule(
        "O-11",
        Severity.INFO,
        "MSRS on either side of NESTED_STATE",
        "",
        "",
        ALL_KERNELS,
        f"{_NESTED_C} (STAR, LSTAR, KERNEL_GS_BASE… are in vmcb01 always); {_MEASURED}",
    ),
    Rule(
        "O-12",
        Severity.WARNING,
        "MSRS after NESTED_STATE keep EFER.SVME",
        "guest mode is dropped without an error",
        "leave EFER to SREGS",
        ALL_KERNELS,
        f"Linux arch/x86/kvm/svm/svm.c svm_set_efer; {_MEASURED}",
    ),
    Rule(
        "O-13",
        Severity.WARNING,
        "MSRS are put before L1 runs again",
        "without VM_HSAVE_PA L1's next VMRUN gets #GP (5.14 and later), an SMI in L2 writes "
        "L1's state to address 0x400; STAR, LSTAR, KERNEL_GS_BASE… are not the guest's",
        "put all MSRs of the stream",
        ALL_KERNELS,
        f"{_NESTED_C} nested_svm_vmrun; svm/svm.c svm_enter_smm",
    ),
    Rule(
        "O-15",
        Severity.INFO,
        "DEBUGREGS on either side of NESTED_STATE",
        "",
        "",
        ALL_KERNELS,
        f"Linux arch/x86/kvm/x86.c; {_MEASURED}",
    ),
    Rule(
        "O-16",
        Severity.WARNING,
        "VCPU_EVENTS after NESTED_STATE",
        "an interrupt shadow lands in L1's VMCB and is lost for L2, which can then hang in HLT; "
        "pending events that are never put are lost",
        "put VCPU_EVENTS after NESTED_STATE",
        "all; the blob carries the shadow itself since 2026",
        f"{_NESTED_C} svm_get_nested_state; {_MEASURED}",
    ),
    Rule(
        "O-17",
        Severity.WARNING,
        "VCPU_EVENTS do not change SMM",
        "guest mode is dropped without an error (5.17 and later), before that the vCPU is in "
        "SMM and in L2 at once; smm=1 before NESTED_STATE makes it EINVAL",
        "put the smm flag that the vCPU has",
        ALL_KERNELS,
        f"Linux arch/x86/kvm/x86.c kvm_smm_changed; {_MEASURED}",
    ),
    Rule(
        "O-22",
        Severity.WARNING,
        "memory is set before KVM_RUN",
        "L1's MSR bitmap and vmcb12 cannot be read: internal error at the first KVM_RUN, "
        "triple fault at L2's next exit",
        "set all memory regions before the vCPUs run",
        ALL_KERNELS,
        f"{_NESTED_C} svm_get_nested_state_pages; {_MEASURED}",
    ),
    Rule(
        "O-25",
        Severity.WARNING,
        "NESTED_STATE once for a state",
        "put again in guest mode it keeps L2's registers and replaces L1's; stable kernels of "
        "5.10 lose L1's control fields",
        "put it once, or leave guest mode first",
        "5.10.y; harmless from 5.13",
        f"{_NESTED_C} svm_set_nested_state; {_MEASURED}",
    ),
    Rule(
        "O-26",
        Severity.WARNING,
        "leaving guest mode by NESTED_STATE is followed by SREGS and REGS",
        "the vCPU is a mixture: registers of L2, segments of L1",
        "put SREGS and REGS of the new state afterwards",
        ALL_KERNELS,
        f"{_NESTED_C} svm_leave_nested; {_MEASURED}",
    ),
    Rule(
        "O-27",
        Severity.INFO,
        "MP_STATE is put before KVM_RUN",
        "a vCPU other than the first waits for INIT and SIPI, and a halted one runs",
        "put MP_STATE; it does not matter on which side of NESTED_STATE",
        ALL_KERNELS,
        "Linux arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl_set_mpstate",
    ),
    Rule(
        "O-28",
        Severity.ERROR,
        "SREGS once more after NESTED_STATE, on kernels that need it",
        "with nested paging L2's MMU is not set up: the first access of L2 that KVM emulates "
        "is a NULL call in the host kernel",
        "do not restore nested paging on these kernels, or put SREGS again after NESTED_STATE "
        "with another CR3 in between",
        "5.8 to 5.12, 5.14 to 5.16",
        f"{_NESTED_C} (fixed by 232f75d3b4b5 and e1779c2714c3); {_MEASURED} on 5.10.223",
    ),
    Rule(
        "T-01",
        Severity.ERROR,
        "a restore stops at the first ioctl that is refused",
        "the values were not taken, and the vCPU runs all the same",
        "treat every error of these ioctls as fatal",
        ALL_KERNELS,
        _MEASURED,
    ),
    Rule(
        "T-02",
        Severity.WARNING,
        "every ioctl is accepted",
        "the values were not taken; nothing ran afterwards",
        "look at what was put, and at what came before it",
        ALL_KERNELS,
        _NESTED_C,
    ),
    Rule(
        "T-03",
        Severity.ERROR,
        "the first KVM_RUN after the put goes well",
        "the state was taken, but the vCPU cannot run with it",
        "compare with what these rules say of CPUID2, memory and nested paging",
        ALL_KERNELS,
        _MEASURED,
    ),
)


@dataclass(frozen=True, slots=True)
class Blind:
    """Something that a trace without data cannot show.

    :param rules: the rules that depend on it.
    :param key: what removes it from the list: ``efer``, ``results``, ``vm``.
    """

    what: str
    rules: tuple[str, ...]
    key: str = ""


BLIND: tuple[Blind, ...] = (
    Blind("EFER in SREGS and MSRS: is SVME set?", ("O-01", "O-08", "O-12"), "efer"),
    Blind("whose SREGS and REGS they are: L1's in L2's place are no error", ("O-05", "O-09")),
    Blind(
        "the flags of the nested state: guest mode, run pending, GIF",
        ("O-19", "O-20", "O-21", "O-25", "O-26"),
    ),
    Blind("smm, interrupt shadow and events in VCPU_EVENTS", ("O-10", "O-16", "O-17")),
    Blind("the kernel's version, and whether nested paging is on", ("O-04", "O-28")),
    Blind("whether an ioctl failed (strace and trace-cmd show it)", ("T-01", "T-02"), "results"),
    Blind("whether memory was set (the log has no ioctls of the VM)", ("O-22",), "vm"),
)


def rule(rule_id: str) -> Rule:
    """The rule with this id.

    :raises KeyError: there is none.
    """
    for one in RULES:
        if one.id == rule_id:
            return one
    raise KeyError(rule_id)
