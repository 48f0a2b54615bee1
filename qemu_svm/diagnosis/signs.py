"""Words in a log that say what happened, whoever wrote them.

A row has an id, a pattern and what it means.  Patterns have only the words that tell, not the
prefix of a program, so that another version or another logger is recognised as well.

Source: messages of QEMU (``accel/kvm/kvm-all.c``, ``target/i386``), libvirt, Cloud Hypervisor,
Firecracker and crosvm; Linux ``arch/x86/kvm`` (5.10 to 7.2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

UPDATE = "update the kernel"
PARTIAL = "msrs-partial"
COLLECT_DUMP = (
    "echo 1 > /sys/module/kvm_amd/parameters/dump_invalid_vmcb, try again, and give dmesg to "
    "svmstream why: it then has the VMCB that the processor refused"
)
COLLECT_EVENTS = (
    "echo 1 > /sys/kernel/tracing/events/kvm/enable, try again, and give "
    "/sys/kernel/tracing/trace to svmstream why: kvm_nested_vmenter_failed names the check"
)
COLLECT_STRACE = (
    "strace -f -y -v -e trace=ioctl -p PID of the program, from its start, for svmstream why"
)
COLLECT_STREAM = "the stream: svmstream why FILE --log LOG compares the log with it"
COLLECT_KERNEL = "uname -r of both hosts: --from RELEASE --to RELEASE"
COLLECT_DMESG = "dmesg of the host from that time, for svmstream why"


@dataclass(frozen=True, slots=True)
class Reason:
    """What may be behind a sign.

    :param rule: id of the rule; empty if there is none.
    :param likely: more than one of several possibilities.
    :param with_fix: it happens on kernels that have the fix of this rule, not on those without.
    """

    rule: str
    why: str
    do: str
    likely: bool = False
    with_fix: bool = False


@dataclass(frozen=True, slots=True)
class Sign:
    """A row of the table.

    :param what: what happened.
    :param reasons: why, the likeliest first.
    :param collect: what would tell more.
    """

    id: str
    pattern: re.Pattern[str]
    what: str
    reasons: tuple[Reason, ...] = ()
    collect: tuple[str, ...] = ()


def _sign(
    number: str, pattern: str, what: str, *reasons: Reason, collect: tuple[str, ...] = ()
) -> Sign:
    return Sign(number, re.compile(pattern, re.IGNORECASE), what, reasons, collect)


_OF_SVM = (
    r"(?:npt|lbrv|svm-?lock|nrip-?save|tsc-?scale|vmcb-?clean|flushbyasid|decodeassists"
    r"|pause-?filter|pfthreshold|avic|v-vmsave-vmload|vgif|svme-addr-chk|vnmi)"
)

SIGNS: tuple[Sign, ...] = (
    _sign(
        "entry-refused-vmx",
        r"entry failed, hardware error 0x8000000?2[12]|fail_?entry.{0,40}0x80000021",
        "an Intel processor refused the guest's state (VM entry failure)",
        Reason("SV-01", "the host is Intel's: nested state of SVM cannot be restored there",
               "restore on an AMD host", likely=True),
    ),
    _sign(
        "entry-refused",
        r"entry failed, hardware error|\bfail[ _-]?entry\b|hardware[ _]entry[ _]fail"
        r"|KVM_EXIT_FAIL_ENTRY|FailEntry",
        "the processor refused the vCPU's VMCB (VMEXIT_INVALID): KVM_RUN returned FAIL_ENTRY",
        Reason("", "the registers that were put are a state that VMRUN does not accept (APM volume "
               "2, 15.5.1): CR0, CR4, EFER and CS contradict each other",
               "put SREGS as one KVM_GET_SREGS returned them", likely=True),
        collect=(COLLECT_DUMP,),
    ),
    _sign(
        "vmrun-failed",
        r"VMEXIT_INVALID|unexpected VMEXIT.{0,40}0x(?:f{8})+\b|\bVMRUN\b.{0,30}\bfail"
        r"|\bfail.{0,30}\bVMRUN\b",
        "a VMRUN failed (VMEXIT_INVALID), as a hypervisor says; if that is L1, KVM or the "
        "processor refused vmcb12",
        Reason("C-06", "tlb_ctl is neither 0 nor 1: legal for the processor, refused by KVM",
               "use a kernel without this check"),
        Reason("", "the registers of L2 or its controls are a state that VMRUN does not accept",
               "compare vmcb12 before and after with svmstream show, from two streams"),
        collect=(COLLECT_EVENTS,),
    ),
    _sign(
        "emulation",
        r"internal error\.? suberror:? ?1\b|emulation[ _]fail|KVM_INTERNAL_ERROR_EMULATION",
        "KVM_RUN ended with an internal error: emulation failed",
        Reason("X-07", "L1's MSR bitmap or vmcb12 is not in the guest's memory: KVM cannot merge "
               "the bitmaps, and reports emulation", "restore all memory before the vCPU runs"),
        Reason("K-20", "the bitmap could not be read once, and the exit fields are stale", UPDATE),
        Reason("O-05", "L2 runs with registers that are not its own, in code that KVM cannot "
               "emulate", "put SREGS and REGS of L2"),
        collect=(COLLECT_STRACE,),
    ),
    _sign(
        "internal-error",
        r"KVM internal error|KVM_EXIT_INTERNAL_ERROR|\bVcpuExit::InternalError|InternalError\b",
        "KVM_RUN ended with an internal error",
        Reason("X-07", "L1's MSR bitmap or vmcb12 is not in the guest's memory",
               "restore all memory before the vCPU runs"),
        collect=(COLLECT_EVENTS,),
    ),
    _sign(
        "shutdown",
        r"triple[ -]?fault|KVM_EXIT_SHUTDOWN|\bexit(?:ed|s|reason)?\b.{0,24}\bshutdown\b"
        r"|VcpuExit::Shutdown|kvm_run_exit.{0,30}reason 8\b",
        "a vCPU shut down (triple fault)",
        Reason("T-04", "the program does not save and restore nested state: L2's code continued in "
               "L1's context", "svmstream trace tells, from a log of its ioctls"),
        Reason("K-10", "L1's CR3 or its PDPTEs could not be loaded at #VMEXIT (with the fix this "
               "is a shutdown, without it L1 goes on damaged)",
               "restore L1's memory and CR3 together", with_fix=True),
        Reason("X-06", "vmcb12 is not in the guest's memory: the next #VMEXIT shuts down",
               "restore all memory before the vCPU runs"),
        Reason("O-05", "the registers that were put are not L2's", "put SREGS and REGS of L2"),
        collect=(COLLECT_STRACE, COLLECT_EVENTS),
    ),
    _sign(
        "hang",
        r"soft lockup|rcu.{0,40}stall|guest.{0,40}(?:hangs?|hung|stuck|freez|frozen|unresponsive)"
        r"|\bL2\b.{0,40}(?:hangs?|hung|stuck|freez|frozen)|(?:hangs?|hung|stuck) (?:in|at|after) "
        r".{0,30}(?:hlt|migrat|restor|resum|snapshot)",
        "the guest does not go on",
        Reason("K-09", "the source did not save L2's interrupt shadow: L2 sleeps in HLT with its "
               "interrupt already taken", "update the source's kernel and save again"),
        Reason("O-16", "VCPU_EVENTS were put before NESTED_STATE: the interrupt shadow is lost",
               "put VCPU_EVENTS after NESTED_STATE"),
        Reason("O-04", "CPUID2 came after NESTED_STATE: KVM_RUN never returns (6.7 to 6.19)",
               "set CPUID2 before any state"),
        collect=(COLLECT_STRACE, COLLECT_EVENTS),
    ),
    _sign(
        "dump-off",
        r"set kvm_amd\.dump_invalid_vmcb=1|kvm_amd\.dump_invalid_vmcb",
        "kvm_amd met an invalid VMCB or an exit that it does not know, and did not print it",
        collect=(COLLECT_DUMP,),
    ),
    _sign(
        "unexpected-exit",
        r"(?:svm|kvm).{0,30}unexpected (?:exit reason|#VMEXIT|exit)",
        "L1 or L2 left with an exit code that this KVM does not know",
        Reason("", "the host's processor has a feature that this KVM does not intercept properly",
               UPDATE),
        collect=(COLLECT_DUMP,),
    ),
    _sign(
        "no-svm",
        r"(?:does(?:n't| not)|cannot|not) (?:support|have|provide|offer).{0,80}"
        r"(?:\bsvm\b|nested virt)"
        r"|\bsvm\b.{0,60}(?:missing|not (?:supported|available|provided|offered)|unavailable)"
        r"|(?:missing|unsupported|lacks?|extra|removed) (?:cpu )?features?:? .{0,80}\bsvm\b"
        r"|requested feature:? .{0,60}\[?svm",
        "the destination does not offer SVM to the guest",
        Reason("R-05", "the guest's CPUID has no svm, and its EFER has SVME: kvm_amd is loaded "
               "with nested=0 (or the CPU model has no svm)",
               "load kvm_amd with nested=1 and use the source's CPU model with svm=on",
               likely=True),
    ),
    _sign(
        "no-svm-feature",
        rf"(?:missing|unsupported|lacks?|removed) (?:cpu )?features?:? .{{0,80}}\b{_OF_SVM}\b"
        rf"|requested feature:? .{{0,60}}\b{_OF_SVM}\b"
        rf"|\b{_OF_SVM}\b.{{0,60}}(?:missing|not (?:supported|available|offered)|unavailable)",
        "the destination does not offer a feature of nested SVM to the guest",
        Reason("", "the processor, kvm_amd's parameters (npt, vgif, nrips, …) or the kernel of the "
               "destination lack a feature that the source's CPU model has",
               "svmstream doctor on both hosts shows which; use a CPU model without it",
               likely=True),
    ),
    _sign(
        "nested-off",
        r"nested.{0,40}(?:not (?:supported|enabled|available)|disabled|unsupported)"
        r"|(?:not|doesn't|does not) support.{0,30}nested|KVM_CAP_NESTED_STATE.{0,40}(?:not|missing"
        r"|unsupported|= ?0)|kvm_amd.{0,30}nested=0",
        "nested virtualization is not available on this host",
        Reason("", "kvm_amd is loaded with nested=0, or the kernel is older than 5.8, or the "
               "program was built without it", "load kvm_amd with nested=1", likely=True),
        collect=("svmstream doctor on that host",),
    ),
    _sign(
        "vmware",
        r"(?:vmware|\besxi?\b).{0,120}(?:power(?:ing)? ?on|fail|n(?:o|')t (?:start|run|boot)|vmrun"
        r"|crash|hang)|(?:power(?:ing)? ?on|fail|n(?:o|')t (?:start|run|boot)|vmrun)"
        r".{0,120}(?:vmware|\besxi?\b)",
        "a hypervisor of VMware does not run its guests",
        Reason("C-06", "it asks for a TLB flush that KVM refuses at VMRUN: tlb_ctl is neither 0 "
               "nor 1, which is legal", "use a kernel without this check"),
        collect=(COLLECT_EVENTS,),
    ),
    _sign(
        PARTIAL,
        r"(?<![a-z])msrs?\b.{0,80}(?:partial|incomplete|\b\d+ ?(?:of|/|out of) ?\d+\b)"
        r"|(?:partial|incomplete|\b\d+ ?(?:of|/|out of) ?\d+\b).{0,60}(?<![a-z])msrs?\b"
        r"|MsrsIncomplete",
        "KVM_SET_MSRS or KVM_GET_MSRS stopped at an MSR of the list",
        Reason("T-05", "the MSR at that place is not known to this kernel or not in the guest's "
               "CPUID, and those behind it were not set", "find the first MSR that is missing: "
               "compare kernel, kvm_amd's parameters (nested=1) and CPU model with the source's",
               likely=True),
        collect=(COLLECT_STRACE, "dmesg: unhandled wrmsr names the MSR"),
    ),
    _sign(
        "killed-vm",
        r"\bvm_bugged\b|KVM_BUG_ON|VM (?:is|was) (?:dead|bugged)",
        "KVM killed the VM after a bug in KVM",
        Reason("SV-18", "L1's EFER has LMA without LME, or CR4.PAE is clear in long mode: KVM's "
               "MMU code cannot handle that", UPDATE),
        collect=("dmesg: the WARN names the check",),
    ),
)  # fmt: skip
"""The table.  Of rows that match the same line, the first counts."""

UNHANDLED = re.compile(
    r"\b(?P<kind>unhandled|ignored) (?P<way>wrmsr|rdmsr)(?:: ?|\()(?P<msr>0x[0-9a-f]{1,8})\)?"
    r"(?:(?: data | = | data: )(?P<value>0x[0-9a-f]{1,16}))?",
    re.IGNORECASE,
)
"""KVM's message about an MSR that it does not know."""

QEMU_VERSION = re.compile(
    r"\b(?:qemu(?:-system-\w+)?|emulator) ?version:?[ :]+(?P<version>\d{1,2}\.\d{1,2})\b",
    re.IGNORECASE,
)
KERNEL = re.compile(r"\bkernel: (?P<release>\d\.\d{1,2}[\w.+~-]*), hostname")
"""libvirt's log names the host's kernel when it starts a domain."""


@dataclass(frozen=True, slots=True)
class MsrReason:
    """Why KVM does not take an MSR.

    :param change: of the table of kernels: the one that made KVM know it.
    """

    name: str
    why: str
    do: str
    rule: str = "U-02"
    change: str = ""


_SVM_CPUID = "load kvm_amd with nested=1, and give the guest the CPU model of the source (svm=on)"
_PV = MsrReason("KVM's paravirtual MSRs", "the guest's CPUID does not offer this feature",
                "use the source's CPU model and kvm- features")  # fmt: skip
_HV = MsrReason("Hyper-V's MSRs", "the guest's CPUID does not offer this enlightenment",
                "use the source's hv- features")  # fmt: skip
_LBR = MsrReason(
    "LBR", "KVM knows the LBR MSRs only with the fix", UPDATE, "K-03", "lbr-msrs-saved"
)
_BASE = MsrReason("FS_BASE, GS_BASE", "KVM_SET_MSRS knows them since the change", UPDATE, "U-02",
                  "base-msrs")  # fmt: skip
MSRS: dict[int, MsrReason] = {
    0xC0000080: MsrReason("EFER", "EFER has a bit that the guest's CPUID does not offer: SVME "
                          "needs svm", _SVM_CPUID, "S-11"),
    0xC0010117: MsrReason("VM_HSAVE_PA", "the guest has no svm, or the address is not a page of "
                          "its memory", _SVM_CPUID),
    0xC0010114: MsrReason("VM_CR", "KVM accepts few bits of it, and only for a guest with svm",
                          _SVM_CPUID),
    0xC0000104: MsrReason("TSC_RATIO", "KVM knows it since 5.16, for a guest with tsc_scale",
                          "use the source's CPU model, and 5.16 or later", "U-02", "tsc-ratio"),
    0xC0000100: _BASE,
    0xC0000101: _BASE,
    0x1D9: _LBR, 0x1DB: _LBR, 0x1DC: _LBR, 0x1DD: _LBR, 0x1DE: _LBR,
}  # fmt: skip


def msr_reason(number: int) -> MsrReason:
    """Return why KVM would refuse an MSR."""
    if number in MSRS:
        return MSRS[number]
    if 0x4B564D00 <= number <= 0x4B564DFF or number in (0x11, 0x12):
        return _PV
    if 0x40000000 <= number <= 0x400001FF:
        return _HV
    return MsrReason(
        "", "this KVM does not know the MSR, or the guest's CPUID does not offer it",
        "compare kernel, microcode and CPU model with the source's",
    )  # fmt: skip


def sign_of(text: str) -> tuple[Sign, re.Match[str]] | None:
    """Return the first row that matches a line."""
    for sign in SIGNS:
        found = sign.pattern.search(text)
        if found is not None:
            return sign, found
    return None
