"""Rules about the order of a restore's ioctls, as far as a trace shows them.

``KVM_SET_NESTED_STATE`` carries L1's save area and the controls L1 chose for L2;
L2's own registers come with SREGS, REGS, MSRS and VCPU_EVENTS.  When the blob says
"guest mode", KVM copies the whole vmcb01 save area into vmcb02 before it
replaces L1's part of vmcb01 by the blob's, so SREGS set before it become L2's,
and SREGS set after it are written to vmcb02 directly.  State that is never set is
not an error for KVM: the vCPU then runs with whatever was there.

Source of the rules: Linux ``arch/x86/kvm/svm/nested.c``
(``svm_set_nested_state``, ``nested_vmcb02_prepare_control``), ``svm/svm.c``
(``svm_set_efer``, ``svm_leave_nested``) and ``x86.c`` of 5.10, 6.1, 6.12 and
7.2, and the orders tried on kvm-amd of Linux 5.10.223, 6.1.176, 6.12.107 and
7.2.12 (``measured`` below means that).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qemu_svm.rules import Rule, RuleKind, Severity

ALL_KERNELS = "5.8 and later"
"""Every kernel that restores nested SVM state."""

_NESTED_C = "Linux arch/x86/kvm/svm/nested.c"
_MEASURED = "measured"


def _either(rule_id: str, fact: str, source: str) -> Rule:
    # Either way is right; the rule only states what happens.
    return Rule(
        rule_id, Severity.INFO, RuleKind.ORDER, fact, "", "", source,
        scope=ALL_KERNELS, requires=fact,
    )  # fmt: skip


ORDERS: tuple[Rule, ...] = (
    Rule(
        "O-01",
        Severity.ERROR,
        RuleKind.ORDER,
        "EFER.SVME is clear at NESTED_STATE",
        "KVM refuses nested state in guest mode with EINVAL while EFER.SVME is clear",
        "set SREGS2 (or SREGS) before NESTED_STATE, as QEMU does since 5.1",
        f"{_NESTED_C} svm_set_nested_state; {_MEASURED}",
        scope=ALL_KERNELS,
        requires="EFER.SVME is set, by SREGS or MSRS, before NESTED_STATE",
    ),
    Rule(
        "O-02",
        Severity.WARNING,
        RuleKind.ORDER,
        "SREGS come before CPUID2",
        "Linux 7.2 refuses EFER.SVME, and every kernel refuses CR4 bits, that CPUID does not offer",
        "set CPUID2 right after KVM_CREATE_VCPU",
        f"Linux arch/x86/kvm/x86.c __set_sregs; {_MEASURED}",
        scope="7.2; CR4 on all",
        requires="CPUID2 before SREGS",
    ),
    Rule(
        "O-03",
        Severity.ERROR,
        RuleKind.ORDER,
        "NESTED_STATE comes before CPUID2",
        "nested state is checked against a CPUID without SVM: EINVAL (5.12 and before do not "
        "check)",
        "set CPUID2 right after KVM_CREATE_VCPU",
        f"{_NESTED_C} nested_vmcb_check_save; {_MEASURED}",
        scope="5.13 and later",
        requires="CPUID2 before NESTED_STATE",
    ),
    Rule(
        "O-04",
        Severity.ERROR,
        RuleKind.ORDER,
        "CPUID2 comes after NESTED_STATE",
        "with nested paging KVM discards L2's MMU: KVM_RUN fails with EFAULT on 6.1 and never "
        "returns on 6.12, even if nothing changed; 7.2 refuses a CPUID that differs",
        "set CPUID2 once, before any state",
        f"Linux arch/x86/kvm/mmu/mmu.c kvm_mmu_after_set_cpuid; {_MEASURED}",
        scope="6.1, 6.12 (probably from 5.14); 7.2 if it differs",
        requires="no CPUID2 after NESTED_STATE",
    ),
    Rule(
        "O-05",
        Severity.ERROR,
        RuleKind.ORDER,
        "SREGS are not set before KVM_RUN",
        "L2 runs with the page tables and segments that were there, and its next exit writes "
        "them into vmcb12; there is no error",
        "set L2's SREGS before or after NESTED_STATE",
        f"{_NESTED_C} nested_svm_vmexit; {_MEASURED}",
        scope=ALL_KERNELS,
        requires="L2's SREGS are set before KVM_RUN",
    ),
    _either(
        "O-06",
        "SREGS before NESTED_STATE become L2's",
        f"{_NESTED_C} svm_set_nested_state (vmcb01.save is copied to vmcb02); {_MEASURED}",
    ),
    _either(
        "O-07",
        "SREGS after NESTED_STATE are written to L2's VMCB",
        f"Linux arch/x86/kvm/svm/svm.c; {_MEASURED}",
    ),
    Rule(
        "O-08",
        Severity.WARNING,
        RuleKind.ORDER,
        "SREGS after NESTED_STATE clear EFER.SVME",
        "KVM leaves guest mode without an error, and GDT and IDT of that call are lost",
        "set L2's EFER with SVME, as KVM_GET_SREGS returned it",
        f"Linux arch/x86/kvm/svm/svm.c svm_set_efer; {_MEASURED}",
        scope=ALL_KERNELS,
        requires="SREGS after NESTED_STATE keep EFER.SVME",
    ),
    Rule(
        "O-09",
        Severity.ERROR,
        RuleKind.ORDER,
        "REGS are not set before KVM_RUN",
        "L2 runs with a RIP, RSP and RAX that are not its own; there is no error",
        "set L2's REGS before or after NESTED_STATE",
        f"Linux arch/x86/kvm/x86.c (L1 and L2 share the registers); {_MEASURED}",
        scope=ALL_KERNELS,
        requires="L2's REGS are set before KVM_RUN",
    ),
    _either(
        "O-11",
        "MSRS before or after NESTED_STATE",
        f"{_NESTED_C} (STAR, LSTAR, KERNEL_GS_BASE… are in vmcb01 always); {_MEASURED}",
    ),
    Rule(
        "O-12",
        Severity.WARNING,
        RuleKind.ORDER,
        "MSRS after NESTED_STATE clear EFER.SVME",
        "KVM leaves guest mode without an error",
        "leave EFER to SREGS",
        f"Linux arch/x86/kvm/svm/svm.c svm_set_efer; {_MEASURED}",
        scope=ALL_KERNELS,
        requires="MSRS after NESTED_STATE keep EFER.SVME",
    ),
    Rule(
        "O-13",
        Severity.WARNING,
        RuleKind.ORDER,
        "MSRS are not set before L1 runs again",
        "without VM_HSAVE_PA L1's next VMRUN gets #GP (5.14 and later), and an SMI in L2 "
        "writes L1's state to address 0x400; STAR, LSTAR, KERNEL_GS_BASE… are not the guest's",
        "set all MSRs of the stream",
        f"{_NESTED_C} nested_svm_vmrun; svm/svm.c svm_enter_smm",
        scope=ALL_KERNELS,
        requires="MSRS are set before L1 runs again",
    ),
    _either(
        "O-15",
        "DEBUGREGS before or after NESTED_STATE",
        f"Linux arch/x86/kvm/x86.c; {_MEASURED}",
    ),
    Rule(
        "O-16",
        Severity.WARNING,
        RuleKind.ORDER,
        "VCPU_EVENTS do not come after NESTED_STATE",
        "an interrupt shadow goes to L1's VMCB and is lost for L2, which can then hang in "
        "HLT; pending events that are never set are lost",
        "set VCPU_EVENTS after NESTED_STATE",
        f"{_NESTED_C} svm_get_nested_state; {_MEASURED}",
        scope="all; the blob carries the shadow itself since 2026",
        requires="VCPU_EVENTS after NESTED_STATE",
    ),
    Rule(
        "O-17",
        Severity.WARNING,
        RuleKind.ORDER,
        "VCPU_EVENTS change SMM",
        "KVM leaves guest mode without an error (5.17 and later); before that the vCPU is in "
        "SMM and in L2 at once; with smm=1 before it NESTED_STATE fails with EINVAL",
        "set the smm flag that the vCPU has",
        f"Linux arch/x86/kvm/x86.c kvm_smm_changed; {_MEASURED}",
        scope=ALL_KERNELS,
        requires="VCPU_EVENTS do not change SMM",
    ),
    Rule(
        "O-22",
        Severity.WARNING,
        RuleKind.ORDER,
        "no memory is set before KVM_RUN",
        "L1's MSR bitmap and vmcb12 cannot be read: internal error at the first KVM_RUN, "
        "triple fault at L2's next exit",
        "set all memory regions before the vCPUs run",
        f"{_NESTED_C} svm_get_nested_state_pages; {_MEASURED}",
        scope=ALL_KERNELS,
        requires="memory is set before KVM_RUN",
    ),
    Rule(
        "O-25",
        Severity.WARNING,
        RuleKind.ORDER,
        "NESTED_STATE is set more than once for a state",
        "set again in guest mode, it keeps L2's registers and replaces L1's; stable kernels "
        "of 5.10 lose L1's control fields",
        "set it once, or leave guest mode first",
        f"{_NESTED_C} svm_set_nested_state; {_MEASURED}",
        scope="5.10.y; harmless from 5.13",
        requires="NESTED_STATE once for a state",
    ),
    Rule(
        "O-26",
        Severity.WARNING,
        RuleKind.ORDER,
        "NESTED_STATE leaves guest mode and is not followed by SREGS and REGS",
        "the vCPU has a mixture of L2's registers and L1's segments",
        "set SREGS and REGS of the new state afterwards",
        f"{_NESTED_C} svm_leave_nested; {_MEASURED}",
        scope=ALL_KERNELS,
        requires="leaving guest mode by NESTED_STATE is followed by SREGS and REGS",
    ),
    Rule(
        "O-27",
        Severity.INFO,
        RuleKind.ORDER,
        "MP_STATE is not set before KVM_RUN",
        "a vCPU other than the first waits for INIT and SIPI, and a halted vCPU runs",
        "set MP_STATE, before or after NESTED_STATE",
        "Linux arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl_set_mpstate",
        scope=ALL_KERNELS,
        requires="MP_STATE is set before KVM_RUN",
    ),
    Rule(
        "O-28",
        Severity.WARNING,
        RuleKind.ORDER,
        "L1 uses nested paging for L2",
        "L2's MMU is not set up, and the host kernel crashes (NULL function call) at the first "
        "access of L2 that KVM must emulate",
        "set SREGS once more after nested state with another CR3 or CR4 in between, or use "
        "5.15.25, 5.16.11, 5.17 or later",
        f"{_NESTED_C} (fixed by 232f75d3b4b5 and e1779c2714c3); {_MEASURED} on 5.10.223",
        kernels=(
            *("5.8", "5.10.0", "5.10.28", "5.10", "5.10.262", "5.11.0", "5.11"),
            *("5.12.0", "5.14.0", "5.15", "5.15.19", "5.16.0", "5.16.5"),
        ),
        scope="5.8 to 5.12, 5.14 to 5.15.24, 5.16 to 5.16.10",
        requires="SREGS once more after NESTED_STATE, on kernels that need it",
        in_trace=Severity.ERROR,
    ),
    Rule(
        "O-31",
        Severity.ERROR,
        RuleKind.ORDER,
        "a vCPU that ran L2 is put without NESTED_STATE",
        "every ioctl succeeds, and L2's code continues in L1's context: nothing that L1 intercepts "
        "is intercepted, and L1 never gets control back",
        "save KVM_GET_NESTED_STATE, and put it after SREGS",
        f"Linux Documentation/virt/kvm/api.rst 4.115; {_MEASURED} in Firecracker's order on 6.1",
        scope=ALL_KERNELS,
        requires="a vCPU that ran L2 gets its NESTED_STATE before KVM_RUN",
    ),
    Rule(
        "O-32",
        Severity.WARNING,
        RuleKind.ORDER,
        "NESTED_STATE has a VMCB and is not in guest mode",
        "KVM does not look at the VMCB: if the vCPU ran L2, L2's code continues in L1's context",
        "find out where the flag GUEST_MODE was lost: KVM_GET_NESTED_STATE returns 128 bytes "
        "outside guest mode",
        f"{_NESTED_C} svm_get_nested_state, svm_set_nested_state",
        scope=ALL_KERNELS,
        requires="nested state with a VMCB is in guest mode",
    ),
    Rule(
        "O-33",
        Severity.ERROR,
        RuleKind.ORDER,
        "a value of the put is one that KVM refuses",
        "the ioctl fails with EINVAL, and what it carries is not set",
        "see which value it is (svmstream simulate), and where the VMM has it from",
        f"{_NESTED_C} svm_set_nested_state; x86.c __set_sregs_common",
        scope=ALL_KERNELS,
        requires="KVM's checks accept the values that are put",
    ),
    Rule(
        "T-01",
        Severity.ERROR,
        RuleKind.ORDER,
        "an ioctl fails and the vCPU runs anyway",
        "its values were not set, and the vCPU ran without them",
        "treat every error of these ioctls as fatal",
        _MEASURED,
        scope=ALL_KERNELS,
        requires="the restore stops at the first ioctl that fails",
    ),
    Rule(
        "T-02",
        Severity.WARNING,
        RuleKind.ORDER,
        "an ioctl fails",
        "its values were not set; nothing ran afterwards",
        "look at its argument, and at what was set before it",
        _NESTED_C,
        scope=ALL_KERNELS,
        requires="every ioctl succeeds",
    ),
    Rule(
        "T-03",
        Severity.ERROR,
        RuleKind.ORDER,
        "the first KVM_RUN after the put fails",
        "the state was accepted, but the vCPU cannot run with it",
        "compare with what these rules say about CPUID2, memory and nested paging",
        _MEASURED,
        scope=ALL_KERNELS,
        requires="the first KVM_RUN after the put succeeds",
    ),
    Rule(
        "T-04",
        Severity.WARNING,
        RuleKind.ORDER,
        "EFER.SVME is set, and nested state is never read or put",
        "the program drops the nested state: if the vCPU ran L2, L2's code continues in L1's "
        "context, and nothing that L1 intercepts is intercepted; GIF is lost as well",
        "save KVM_GET_NESTED_STATE and put it after SREGS, or restore no guest that runs L2",
        f"Linux Documentation/virt/kvm/api.rst 4.114; {_MEASURED}",
        scope=ALL_KERNELS,
        requires="nested state is read and put with the other state of a vCPU that uses SVM",
    ),
    Rule(
        "T-05",
        Severity.ERROR,
        RuleKind.ORDER,
        "KVM_SET_MSRS or KVM_GET_MSRS stops at an MSR",
        "KVM returns how many it took, which is no error: the MSR at that place was refused, "
        "and those behind it were not set or read",
        "compare the result with the number that was asked for; the first one missing is refused "
        "by this kernel or by the guest's CPUID",
        "Linux arch/x86/kvm/x86.c __msr_io",
        scope=ALL_KERNELS,
        requires="KVM_SET_MSRS and KVM_GET_MSRS return the number that was asked for",
    ),
    Rule(
        "T-06",
        Severity.WARNING,
        RuleKind.ORDER,
        "an ioctl is called on the wrong kind of descriptor",
        "it always fails; if it is KVM_CHECK_EXTENSION, -1 is taken for an answer, and nested "
        "state may never be used",
        "call KVM_CHECK_EXTENSION on the VM, or on /dev/kvm",
        "Linux virt/kvm/kvm_main.c kvm_vcpu_ioctl, kvm_dev_ioctl",
        scope=ALL_KERNELS,
        requires="each ioctl is called on a descriptor that has it",
    ),
    Rule(
        "T-07",
        Severity.ERROR,
        RuleKind.ORDER,
        "KVM_RUN fails",
        "the vCPU does not run",
        "look at dmesg (kvm_amd dump_invalid_vmcb=1 prints the VMCB)",
        "Linux arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl_run",
        scope=ALL_KERNELS,
        requires="KVM_RUN succeeds, or is interrupted",
    ),
    Rule(
        "T-08",
        Severity.WARNING,
        RuleKind.ORDER,
        "a read of state fails and is not repeated",
        "that state is not saved",
        "treat every error of these ioctls as fatal",
        _NESTED_C,
        scope=ALL_KERNELS,
        requires="every read of state succeeds",
    ),
)
"""In the order of their ids."""

DATA: tuple[Rule, ...] = (
    Rule(
        "O-10",
        Severity.WARNING,
        RuleKind.ORDER,
        "a soft event is pending for L2 and L1 lacks NRIPS",
        "5.18 to 7.0 take the return address from the wrong RIP",
        "use a kernel with the fix of 2026",
        "commit a0592461f39c",
        scope="5.18 to 7.0",
        requires="no soft event is pending for L2, on kernels that lose its NextRIP",
    ),
    Rule(
        "O-14",
        Severity.INFO,
        RuleKind.ORDER,
        "TSC_RATIO is set after nested state",
        "L2's TSC offset keeps the old ratio",
        "set it before",
        "derived from nested.c",
        scope=ALL_KERNELS,
        requires="TSC_RATIO is set before NESTED_STATE",
    ),
    Rule(
        "O-18",
        Severity.WARNING,
        RuleKind.ORDER,
        "the source was in SMM, perhaps entered from L2",
        "the nested state is not in guest mode; SMRAM carries L2's context",
        "do not force guest mode",
        "svm.c",
        scope=ALL_KERNELS,
        requires="a vCPU in SMM is put without guest mode",
    ),
    Rule(
        "O-19",
        Severity.WARNING,
        RuleKind.ORDER,
        "GIF is clear",
        "5.10 to 5.12 restore it as set in guest mode",
        "use another kernel",
        "commit 063ab16c14db",
        scope="5.10 to 5.12",
        requires="GIF is set in guest mode, on kernels that do not restore it",
    ),
    Rule(
        "O-20",
        Severity.WARNING,
        RuleKind.ORDER,
        "flags is 0 and EFER.SVME is clear",
        "kernels before 7.0 refuse this (SV-03)",
        "pass flags 0x100 to them",
        "commit 6f4d3ebc24c6",
        scope="before 7.0",
        requires="flags are 0x100 while EFER.SVME is clear",
    ),
    Rule(
        "O-21",
        Severity.WARNING,
        RuleKind.ORDER,
        "RUN_PENDING is set",
        "up to 5.10 it is lost, and the event of L1's VMRUN may be dropped",
        "use 5.11 or later",
        "commit 81f76adad560",
        scope="up to 5.10",
        requires="RUN_PENDING is clear, on kernels that ignore it",
    ),
    Rule(
        "O-23",
        Severity.WARNING,
        RuleKind.ORDER,
        "L2 uses PAE paging and the stream has no PDPTRs from SREGS2",
        "the PDPTEs may be read with L1's translation",
        "use SREGS2 with PDPTRS_VALID",
        "nested.c",
        scope=ALL_KERNELS,
        requires="an L2 with PAE paging gets its PDPTRs by SREGS2",
    ),
    Rule(
        "O-24",
        Severity.INFO,
        RuleKind.ORDER,
        "L2 has its own PAT (quirk disabled)",
        "QEMU does not migrate hdr.svm.gpat",
        "leave the quirk enabled",
        "nested.c, 7.2",
        scope="7.2",
        requires="L2 has no PAT of its own",
    ),
    Rule(
        "O-29",
        Severity.INFO,
        RuleKind.ORDER,
        "L1 uses Hyper-V enlightenments",
        "they are lost until L1's next VMRUN",
        "",
        "nested.c svm_get_nested_state",
        scope=ALL_KERNELS,
        requires="L1 uses no Hyper-V enlightenments",
    ),
    Rule(
        "O-30",
        Severity.INFO,
        RuleKind.ORDER,
        "the save area has shadow stack or LBR state of L1",
        "kernels before 7.0 ignore it",
        "use 7.x",
        "nested.c svm_copy_vmrun_state",
        scope="before 7.0",
        requires="the save area has no shadow stack and no LBR state of L1",
    ),
)
"""Rules that data alone decides: of a recording here, of a stream in
:mod:`qemu_svm.findings.advisories`."""

_BY_ID: Mapping[str, Rule] = MappingProxyType({rule.id: rule for rule in (*ORDERS, *DATA)})


@dataclass(frozen=True, slots=True)
class NotShown:
    """Something that a log cannot show.

    :param rules: the rules that depend on it.
    :param key: what a log may have that shows it after all: ``efer``, ``data``, ``results``,
        ``vm``, ``kernel``.
    """

    what: str
    rules: tuple[str, ...]
    key: str = ""


NOT_SHOWN: tuple[NotShown, ...] = (
    NotShown("EFER in SREGS and MSRS: whether SVME is set", ("O-01", "O-08", "O-12"), "efer"),
    NotShown(
        "whose SREGS and REGS they are: KVM accepts L1's in place of L2's",
        ("O-05", "O-09"),
        "data",
    ),
    NotShown(
        "the flags of the nested state: guest mode, run pending, GIF",
        ("O-19", "O-20", "O-21", "O-25", "O-26"),
        "data",
    ),
    NotShown("smm, interrupt shadow and events in VCPU_EVENTS", ("O-10", "O-16", "O-17"), "data"),
    NotShown("the kernel's version, and whether nested paging is on", ("O-04", "O-28"), "kernel"),
    NotShown("whether an ioctl failed (strace and trace-cmd show it)", ("T-01", "T-02"), "results"),
    NotShown("whether memory was set (the log has no ioctls of the VM)", ("O-22",), "vm"),
)


def rule(rule_id: str) -> Rule:
    """Return the rule with this id.

    :raises KeyError: there is none.
    """
    return _BY_ID[rule_id]
