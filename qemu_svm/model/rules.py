"""KVM's checks as rules: what each one refuses, why, and what to do.

The predicates are in :mod:`qemu_svm.model.kvm.checks`; which kernel has which
check is in :mod:`qemu_svm.model.profiles`, which is where ``kernels`` comes from.
Checks that no profile lists (``GET-``, ``R-06``, ``U-``) are the same on every kernel,
or are made by the ioctl's own function.

In the sources, "nested.c" is Linux ``arch/x86/kvm/svm/nested.c``.
"""

from __future__ import annotations

from qemu_svm.model.profiles import PROFILES
from qemu_svm.rules import BAD_VALUE, Rule, RuleKind, Severity

_EINVAL = "KVM_SET_NESTED_STATE fails with EINVAL"
_SREGS = "KVM_SET_SREGS fails with EINVAL"
_SET = "nested.c svm_set_nested_state"
_CONTROLS = "nested.c nested_vmcb_check_controls"
_SAVE = "nested.c nested_vmcb_check_save"
_X86 = "Linux arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl"
_SVME = "set SVME, by SREGS or by MSR EFER, before the nested state"
_CPUID = "compare the destination's CPU model with the source's"


# Id, the field that it looks at, when it fails, what follows, what to do, source.
_ROWS: tuple[tuple[str, str, str, str, str, str], ...] = (
    ("GET-01", "", "the buffer is smaller than 128 bytes",
     "KVM_GET_NESTED_STATE fails with E2BIG", "ask KVM_CAP_NESTED_STATE for the size", _X86),
    ("GET-02", "", "the buffer is smaller than 4224 bytes in guest mode",
     "KVM_GET_NESTED_STATE fails with E2BIG, although it writes all 4224 bytes",
     "always pass a buffer of 4224 bytes", "nested.c svm_get_nested_state"),
    ("SET-03", "nested.size", "size is less than 128", _EINVAL,
     "size includes the header of 128 bytes", _X86),
    ("SET-04", "nested.flags", "flags has a bit set outside 0x10f", _EINVAL,
     "clear that bit", _X86),
    ("SET-05", "nested.flags", "RUN_PENDING is set without GUEST_MODE", _EINVAL,
     "set both or neither", _X86),
    ("SV-01", "nested.format", "the format is not SVM", _EINVAL,
     "a stream from an Intel host cannot be restored on an AMD host", _SET),
    ("SV-02", "nested.flags", "flags has EVMCS or MTF_PENDING set", _EINVAL,
     "clear them: they are for VMX only", _SET),
    ("SV-03", "registers.efer", "EFER.SVME is clear and flags is not exactly GIF_SET",
     _EINVAL,
     _SVME + "; outside guest mode pass flags 0x100", _SET),
    ("SV-03b", "registers.efer", "EFER.SVME is clear and flags is neither 0 nor GIF_SET",
     _EINVAL, _SVME, _SET + ", commit 6f4d3ebc24c6"),
    ("SV-04", "", "the vCPU is in SMM and GUEST_MODE is set", _EINVAL,
     "clear GUEST_MODE: until RSM, SMRAM holds the context of L2", _SET),
    ("SV-05", "nested.vmcb_pa", "vmcb_pa is not page-aligned or is above MAXPHYADDR",
     _EINVAL, _CPUID, _SET),
    ("SV-06", "nested.size", "size is less than 4224 in guest mode", _EINVAL,
     "pass the whole VMCB", _SET),
    ("C-01", "nested.control.intercepts", "L1 does not intercept VMRUN", _EINVAL,
     BAD_VALUE, _CONTROLS),
    ("C-02", "nested.control.asid", "L2's ASID is 0", _EINVAL, BAD_VALUE, _CONTROLS),
    ("C-03", "nested.control.nested_ctl", "L1 uses nested paging and the host has npt=0",
     _EINVAL, "load kvm-amd with npt=1 on the destination", _CONTROLS),
    ("C-03b", "nested.control.nested_cr3", "nested_cr3 is above MAXPHYADDR", _EINVAL,
     _CPUID, _CONTROLS + ", commit b71138fcc362"),
    ("C-04", "nested.control.msrpm_base_pa",
     "the MSR permission map ends above MAXPHYADDR", _EINVAL, _CPUID, _CONTROLS),
    ("C-05", "nested.control.iopm_base_pa",
     "the I/O permission map ends above MAXPHYADDR", _EINVAL, _CPUID, _CONTROLS),
    ("C-06", "nested.control.tlb_ctl", "tlb_ctl is neither 0 nor 1", _EINVAL,
     "use a kernel without this check: the value is valid for the processor",
     _CONTROLS + ", commit 174a921b6975, reverted by a484755ab252"),
    ("C-07", "nested.control.int_ctl",
     "V_NMI_ENABLE is set and L1 does not intercept NMI", _EINVAL, BAD_VALUE, _CONTROLS),
    ("C-08", "nested.control.event_inj",
     "event_inj has a reserved type or an invalid vector", _EINVAL, BAD_VALUE, _CONTROLS),
    ("SV-10", "registers.cr0", "the vCPU's CR0 has NW set and CD clear", _EINVAL,
     BAD_VALUE, _SET),
    ("SV-11", "nested.l1_save.cr0", "L1's CR0.PG is clear", _EINVAL, BAD_VALUE, _SET),
    ("SV-12", "nested.l1_save.efer", "L1's EFER.SVME is clear", _EINVAL, BAD_VALUE, _SET),
    ("SV-13", "nested.l1_save.cr0", "L1's CR0.PE is clear", _EINVAL, BAD_VALUE, _SET),
    ("SV-14", "nested.l1_save.rflags", "L1's RFLAGS.VM is set", _EINVAL, BAD_VALUE, _SET),
    ("SV-16", "registers.cr3", "L2's CR3 (from SREGS) is above MAXPHYADDR", _EINVAL,
     _CPUID, "nested.c nested_svm_load_cr3"),
    ("SV-17", "", "L2 has its own PAT and gpat is invalid", _EINVAL,
     "pass the gpat that KVM_GET_NESTED_STATE returned in hdr.svm", _SET),
    ("SV-18", "nested.l1_save.efer", "L1's EFER has LMA set and LME clear", _EINVAL,
     "find out what wrote this value: no processor has it (6.12.117 kills the VM without PAE)",
     _SET + ", commit 5dc500a354cc"),
    ("S-01", "nested.l1_save.efer", "L1's EFER.SVME is clear", _EINVAL, BAD_VALUE, _SAVE),
    ("S-02", "nested.l1_save.cr0", "L1's CR0 has NW set and CD clear", _EINVAL,
     BAD_VALUE, _SAVE),
    ("S-03", "nested.l1_save.cr0", "L1's CR0 has bits set above bit 31", _EINVAL,
     BAD_VALUE, _SAVE),
    ("S-04", "nested.l1_save.dr6",
     "DR6 or DR7 of the save area has bits set above bit 31", _EINVAL, BAD_VALUE, _SAVE),
    ("S-05", "nested.l1_save.cr4", "L1 is in long mode with CR4.PAE clear", _EINVAL,
     BAD_VALUE, _SAVE),
    ("S-06", "nested.l1_save.cr0", "L1 is in long mode with CR0.PE clear", _EINVAL,
     BAD_VALUE, _SAVE),
    ("S-07", "nested.l1_save.cr3", "L1's CR3 is above MAXPHYADDR", _EINVAL, _CPUID, _SAVE),
    ("S-09", "nested.l1_save.cs.attrib", "L1 is in long mode and its CS has L and D set",
     _EINVAL, BAD_VALUE, _SAVE),
    ("S-10", "nested.l1_save.cr4", "L1's CR4 has a bit set that CPUID does not allow",
     _EINVAL, _CPUID, _SAVE),
    ("S-11", "nested.l1_save.efer", "L1's EFER has a bit set that CPUID does not allow",
     _EINVAL, _CPUID, _SAVE),
    ("R-01", "registers.efer",
     "EFER.LME and CR0.PG do not agree with EFER.LMA, CR4.PAE and CS.L", _SREGS,
     BAD_VALUE, "Linux arch/x86/kvm/x86.c kvm_is_valid_sregs"),
    ("R-02", "registers.cr3", "CR3 is above MAXPHYADDR", _SREGS, _CPUID,
     "x86.c kvm_is_valid_sregs"),
    ("R-03", "registers.cr4", "CR4 has a bit set that CPUID does not allow", _SREGS,
     _CPUID, "x86.c kvm_is_valid_cr4"),
    ("R-04", "registers.cr0",
     "CR0 has bits set above bit 31, NW without CD, or PG without PE", _SREGS, BAD_VALUE,
     "x86.c kvm_is_valid_cr0"),
    ("R-05", "registers.efer", "EFER has a bit set that CPUID does not allow", _SREGS,
     "set CPUID before SREGS; " + _CPUID,
     "Linux arch/x86/kvm/regs.c kvm_is_valid_sregs, commit 184bd464bdb6"),
    ("R-06", "", "the kernel does not have KVM_SET_SREGS2",
     "KVM_SET_SREGS2 fails with EINVAL", "use KVM_SET_SREGS", "x86.c, 5.14"),
    ("R-07", "", "the APIC base has reserved bits set, or x2APIC without its CPUID or enable bit",
     _SREGS, _CPUID,
     "x86.c kvm_set_apic_base (lapic.c kvm_apic_set_base since 6.12)"),
    ("R-08", "", "PDPTRs are passed, but CR0, CR4 and EFER do not select PAE paging",
     "KVM_SET_SREGS2 fails with EINVAL", "clear KVM_SREGS2_FLAGS_PDPTRS_VALID",
     "x86.c __set_sregs2"),
    ("U-01", "", "CPUID changes after the vCPU has run or, on 7.2, in guest mode",
     "KVM_SET_CPUID2 fails with EINVAL", "set CPUID once, before everything else",
     "Linux arch/x86/kvm/cpuid.c kvm_set_cpuid"),
    ("U-02", "", "an MSR has an invalid value",
     "KVM_SET_MSRS sets none of the MSRs from this one on", BAD_VALUE, "x86.c"),
    ("U-03", "", "DR6 or DR7 has bits set above bit 31",
     "KVM_SET_DEBUGREGS fails with EINVAL", BAD_VALUE,
     "x86.c kvm_vcpu_ioctl_x86_set_debugregs"),
    ("U-04", "", "the events are invalid", "KVM_SET_VCPU_EVENTS fails with EINVAL",
     BAD_VALUE, "x86.c kvm_vcpu_ioctl_x86_set_vcpu_events"),
    ("U-05", "", "the MP state is not allowed in this state of the vCPU",
     "KVM_SET_MP_STATE fails with EINVAL",
     "INIT and SIPI are blocked while GIF is clear",
     "x86.c kvm_arch_vcpu_ioctl_set_mpstate"),
    ("U-06", "nested.l1_save.efer", "KVM has killed the VM, because its state was impossible",
     "every ioctl fails with EIO", "find out what wrote the impossible state: see the step before",
     "Linux virt/kvm/kvm_main.c kvm_vcpu_ioctl, include/linux/kvm_host.h kvm_vm_bugged"),
)  # fmt: skip


def _kernels(check: str) -> tuple[str, ...]:
    return tuple(name for name in PROFILES if check in PROFILES[name].checks)


CHECKS: tuple[Rule, ...] = tuple(
    Rule(
        check, Severity.ERROR, RuleKind.CHECK, when, means, do, source, _kernels(check), field=field
    )
    for check, field, when, means, do, source in _ROWS
)
"""Every check of KVM, in the order in which ``check --rules`` lists them."""
