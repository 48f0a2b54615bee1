"""Every rule of a restore, as data: what it asks, what follows, what to do.

Three kinds:

* **checks** (``GET- SET- SV- C- S- R- U-``): KVM looks and answers with an error.
  Which kernel has which check is in :mod:`qemu_svm.model.profiles`;
* **order** (``O- T-``): what must come before what, see
  :mod:`qemu_svm.trace.rules`;
* **consistency** (``X-``) and **advisories** (``A- Q-``): parts of a stream that
  contradict each other, and known bugs that this stream would meet.

Sources are given with each rule; "nested.c" is Linux ``arch/x86/kvm/svm/nested.c``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qemu_svm.model.profiles import PROFILES, RELEASED
from qemu_svm.trace.rules import RULES as ORDERS
from qemu_svm.trace.rules import Rule as OrderRule

ERROR, WARNING, INFO = "error", "warning", "info"


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    :param fails_when: the condition, as the end of "fails when …".
    :param kernels: names it applies to; empty for all (or if it is not KVM's).
    :param scope: the same in words, where profiles do not say it.
    """

    id: str
    severity: str
    fails_when: str
    means: str
    do: str
    source: str
    kernels: tuple[str, ...] = ()
    scope: str = ""

    @property
    def kind(self) -> str:
        """``check``, ``order``, ``consistency`` or ``advisory``."""
        prefix = self.id.partition("-")[0]
        return {
            "O": "order",
            "T": "order",
            "X": "consistency",
            "A": "advisory",
            "Q": "advisory",
        }.get(prefix, "check")


_EINVAL = "KVM_SET_NESTED_STATE answers EINVAL"
_SREGS = "KVM_SET_SREGS answers EINVAL"
_SET = "nested.c svm_set_nested_state"
_CONTROLS = "nested.c nested_vmcb_check_controls"
_SAVE = "nested.c nested_vmcb_check_save"
_X86 = "Linux arch/x86/kvm/x86.c kvm_arch_vcpu_ioctl"
_FIX_SOURCE = "look at what wrote this field; the source's kernel could not have run with it"
_CPUID = "compare the destination's CPU model with the source's"

_CHECKS = (
    ("GET-01", "the buffer is below 128 bytes", "KVM_GET_NESTED_STATE answers E2BIG",
     "ask KVM_CAP_NESTED_STATE for the size", _X86),
    ("GET-02", "the buffer is below 4224 bytes in guest mode",
     "E2BIG, but all 4224 bytes are written", "always pass 4224 bytes",
     "nested.c svm_get_nested_state"),
    ("SET-03", "size is below 128", _EINVAL, "size counts the 128 bytes of header", _X86),
    ("SET-04", "flags has a bit outside 0x10f", _EINVAL, "clear it", _X86),
    ("SET-05", "RUN_PENDING is set without GUEST_MODE", _EINVAL, "set both or neither", _X86),
    ("SV-01", "the format is not SVM's", _EINVAL, "an Intel stream cannot go to AMD", _SET),
    ("SV-02", "flags has EVMCS or MTF_PENDING", _EINVAL, "these are VMX's", _SET),
    (
        "SV-03",
        "EFER.SVME is clear and flags are not exactly GIF_SET",
        _EINVAL,
        "put SREGS (or MSR EFER) with SVME before nested state; without guest mode pass 0x100",
        _SET,
    ),
    (
        "SV-03b",
        "EFER.SVME is clear and flags are neither 0 nor GIF_SET",
        _EINVAL,
        "put SREGS (or MSR EFER) with SVME before nested state",
        _SET + ", commit 6f4d3ebc24c6",
    ),
    ("SV-04", "the vCPU is in SMM and GUEST_MODE is set", _EINVAL, "SMM hides guest mode", _SET),
    ("SV-05", "vmcb_pa is unaligned or above MAXPHYADDR", _EINVAL, _CPUID, _SET),
    ("SV-06", "size is below 4224 in guest mode", _EINVAL, "pass the whole VMCB", _SET),
    ("C-01", "L1 does not intercept VMRUN", _EINVAL, _FIX_SOURCE, _CONTROLS),
    ("C-02", "L2's ASID is 0", _EINVAL, _FIX_SOURCE, _CONTROLS),
    (
        "C-03",
        "L1 uses nested paging and the host has npt=0",
        _EINVAL,
        "load kvm-amd with npt=1 on the destination",
        _CONTROLS,
    ),
    ("C-03b", "nested_cr3 is above MAXPHYADDR", _EINVAL, _CPUID, _CONTROLS + ", stable of 2026"),
    ("C-04", "the MSR permission map ends above MAXPHYADDR", _EINVAL, _CPUID, _CONTROLS),
    ("C-05", "the I/O permission map ends above MAXPHYADDR", _EINVAL, _CPUID, _CONTROLS),
    (
        "C-06",
        "tlb_ctl is not 0 or 1",
        _EINVAL,
        "use a kernel without this check: the value is legal",
        _CONTROLS + ", about 5.14 to 6.6",
    ),
    ("C-07", "V_NMI_ENABLE is set and NMI is not intercepted", _EINVAL, _FIX_SOURCE, _CONTROLS),
    ("C-08", "event_inj has a reserved type or vector", _EINVAL, _FIX_SOURCE, _CONTROLS),
    ("SV-10", "the vCPU's CR0 has NW without CD", _EINVAL, _FIX_SOURCE, _SET),
    ("SV-11", "L1's CR0.PG is clear", _EINVAL, _FIX_SOURCE, _SET),
    ("SV-12", "L1's EFER.SVME is clear", _EINVAL, _FIX_SOURCE, _SET),
    ("SV-13", "L1's CR0.PE is clear", _EINVAL, _FIX_SOURCE, _SET),
    ("SV-14", "L1's RFLAGS.VM is set", _EINVAL, _FIX_SOURCE, _SET),
    (
        "SV-16",
        "L2's CR3 (from SREGS) is above MAXPHYADDR",
        _EINVAL,
        _CPUID,
        "nested.c nested_svm_load_cr3",
    ),
    ("SV-17", "L2 has its own PAT and gpat is invalid", _EINVAL, "carry hdr.svm.gpat", _SET),
    ("S-01", "L1's EFER.SVME is clear", _EINVAL, _FIX_SOURCE, _SAVE),
    ("S-02", "L1's CR0 has NW without CD", _EINVAL, _FIX_SOURCE, _SAVE),
    ("S-03", "L1's CR0 has bits above 31", _EINVAL, _FIX_SOURCE, _SAVE),
    ("S-04", "DR6 or DR7 of the save area has bits above 31", _EINVAL, _FIX_SOURCE, _SAVE),
    ("S-05", "L1 is in long mode with CR4.PAE clear", _EINVAL, _FIX_SOURCE, _SAVE),
    ("S-06", "L1 is in long mode with CR0.PE clear", _EINVAL, _FIX_SOURCE, _SAVE),
    ("S-07", "L1's CR3 is above MAXPHYADDR", _EINVAL, _CPUID, _SAVE),
    ("S-09", "L1's CS has L and D set in long mode", _EINVAL, _FIX_SOURCE, _SAVE),
    ("S-10", "L1's CR4 has a bit that CPUID does not allow", _EINVAL, _CPUID, _SAVE),
    ("S-11", "L1's EFER has a bit that CPUID does not allow", _EINVAL, _CPUID, _SAVE),
    (
        "R-01",
        "EFER.LME and CR0.PG do not fit LMA, CR4.PAE and CS.L",
        _SREGS,
        _FIX_SOURCE,
        "Linux arch/x86/kvm/x86.c kvm_is_valid_sregs",
    ),
    ("R-02", "CR3 is above MAXPHYADDR", _SREGS, _CPUID, "x86.c kvm_is_valid_sregs"),
    ("R-03", "CR4 has a bit that CPUID does not allow", _SREGS, _CPUID, "x86.c kvm_is_valid_cr4"),
    ("R-04", "CR0 is impossible", _SREGS, _FIX_SOURCE, "x86.c kvm_is_valid_cr0"),
    (
        "R-05",
        "EFER has a bit that CPUID does not allow",
        _SREGS,
        "set CPUID before SREGS; " + _CPUID,
        "Linux arch/x86/kvm/regs.c kvm_is_valid_sregs (7.2; 6.12.117)",
    ),
    ("R-06", "the kernel has no KVM_SET_SREGS2", "EINVAL", "use KVM_SET_SREGS", "x86.c, 5.14"),
    ("R-07", "the APIC base has reserved bits, or x2APIC mode that CPUID or the enable bit lacks",
     _SREGS, _CPUID, "x86.c kvm_set_apic_base (lapic.c kvm_apic_set_base since 6.12)"),
    ("R-08", "PDPTRs are given, but CR0, CR4 and EFER are not those of PAE paging",
     "KVM_SET_SREGS2 answers EINVAL", "leave the flag out", "x86.c __set_sregs2"),
    (
        "U-01",
        "CPUID changes after the vCPU ran, or (7.2) in guest mode",
        "KVM_SET_CPUID2 answers EINVAL",
        "set CPUID once, first",
        "Linux arch/x86/kvm/cpuid.c kvm_set_cpuid",
    ),
    ("U-02", "an MSR has an impossible value", "KVM_SET_MSRS stops there", _FIX_SOURCE, "x86.c"),
    ("U-03", "DR6 or DR7 has bits above 31", "KVM_SET_DEBUGREGS answers EINVAL", _FIX_SOURCE,
     "x86.c kvm_vcpu_ioctl_x86_set_debugregs"),
    ("U-04", "the events are impossible", "KVM_SET_VCPU_EVENTS answers EINVAL", _FIX_SOURCE,
     "x86.c kvm_vcpu_ioctl_x86_set_vcpu_events"),
    ("U-05", "the MP state is impossible here", "KVM_SET_MP_STATE answers EINVAL",
     "INIT and SIPI are blocked while GIF is clear", "x86.c kvm_arch_vcpu_ioctl_set_mpstate"),
)  # fmt: skip

_ALL = ()
_NPT_BUG = tuple(name for name in RELEASED if not PROFILES[name].mmu_ready)
_NO_PENDING = tuple(n for n in RELEASED if PROFILES[n].run_pending == "ignored")
_NO_GIF = tuple(n for n in RELEASED if PROFILES[n].gif == "ignored")
# The series that made VMRUN look at VM_HSAVE_PA also made SMM entry use it (5.14).
_SMM_LOSES_L1 = tuple(name for name in RELEASED if not PROFILES[name].vmrun.hsave_needed)

_OTHERS = (
    ("O-10", WARNING, "a soft event is pending for L2 and L1 lacks NRIPS",
     "5.18 to 7.0 take the return address from the wrong RIP", "use a kernel with the fix of 2026",
     "commit a0592461f39c", ("6.1", "6.6", "6.12", "6.12.117")),
    ("O-14", INFO, "TSC_RATIO comes after nested state", "L2's TSC offset keeps the old ratio",
     "restore it before", "derived from nested.c", _ALL),
    ("O-18", WARNING, "the source was in SMM, perhaps out of L2",
     "there is no guest-mode blob; SMRAM carries it", "do not force guest mode", "svm.c", _ALL),
    ("O-19", WARNING, "GIF is clear", "5.10 to 5.12 restore it as set in guest mode",
     "use another kernel", "commit 063ab16c14db", _NO_GIF),
    ("O-20", WARNING, "flags are 0 and SVME is clear", "kernels before 7.0 refuse (SV-03)",
     "pass 0x100 to them", "commit 6f4d3ebc24c6",
     tuple(n for n in RELEASED if "SV-03" in PROFILES[n].set_nested_state)),
    ("O-21", WARNING, "RUN_PENDING is set", "up to 5.10 it is lost: VMRUN's event may be dropped",
     "use 5.11 or later", "commit 81f76adad560", _NO_PENDING),
    ("O-23", WARNING, "L2 uses PAE paging without PDPTRs from SREGS2",
     "PDPTEs may be read with L1's translation", "use SREGS2 with PDPTRS_VALID", "nested.c", _ALL),
    ("O-24", INFO, "L2 has its own PAT (quirk disabled)", "QEMU does not carry hdr.svm.gpat",
     "leave the quirk enabled", "nested.c, 7.2", ("7.2",)),
    ("O-28", WARNING, "L1 uses nested paging for L2",
     "the host kernel crashes at the first access of L2 that KVM must emulate",
     "put SREGS once more after nested state with another CR3 or CR4 between, or use 5.17 or later",
     "measured on 5.10; commits 232f75d3b4b5, e1779c2714c3", _NPT_BUG),
    ("O-29", INFO, "L1 uses Hyper-V enlightenments", "they are lost until L1's next VMRUN",
     "nothing", "nested.c svm_get_nested_state", _ALL),
    ("O-30", INFO, "L1 has shadow stack or LBR state in the save area",
     "kernels before 7.0 ignore it", "use 7.x", "nested.c svm_copy_vmrun_state",
     tuple(n for n in RELEASED if n != "7.2")),
    ("A-01", WARNING, "L1 intercepts MSRs", "L2's MSR accesses are not intercepted after it",
     "use 5.9 or later", "commit 772b81bb2f9b", ("5.8",)),
    ("A-02", WARNING, "a soft event with NextRIP is pending for L2",
     "kernels before 5.19 lose NextRIP: a wrong return address is pushed", "use 5.19 or later",
     "commit 00f08d99dd7d",
     tuple(n for n in RELEASED if "next_rip" not in PROFILES[n].control_fields)),
    ("A-03", WARNING, "the source was in SMM, perhaps out of L2",
     "up to 5.13, as source or as destination, L1's state does not travel with SMRAM",
     "save again outside SMM, or use 5.14 or later",
     "measured on 5.10; commit 37be407b2ce8", _SMM_LOSES_L1),
    ("X-01", ERROR, "hflags and the nested flags disagree about guest mode",
     "QEMU refuses the stream, or restores without guest mode", _FIX_SOURCE,
     "QEMU target/i386/machine.c cpu_post_load", _ALL),
    ("X-02", WARNING, "hflags2 and the nested flags disagree about GIF", "QEMU takes hflags2",
     _FIX_SOURCE, "QEMU target/i386/kvm/kvm.c kvm_put_nested_state", _ALL),
    ("X-03", ERROR, "the vCPU is in guest mode and carries no nested state",
     "L1's state is lost; the restore fails (C-01)", "save with QEMU 5.1 or later",
     "QEMU target/i386/machine.c", _ALL),
    ("X-04", ERROR, "the nested state's size or format is impossible", "QEMU or KVM refuse it",
     _FIX_SOURCE, "QEMU target/i386/machine.c nested_state_post_load", _ALL),
    ("X-05", ERROR, "the vCPU is in guest mode with EFER.SVME clear", "EINVAL (SV-03)",
     _FIX_SOURCE, _SET, _ALL),
    ("X-06", WARNING, "vmcb12 is outside the guest's RAM",
     "accepted, but the next #VMEXIT ends in a shutdown", _FIX_SOURCE, "measured", _ALL),
    ("X-07", WARNING, "L1's MSR bitmap is outside the guest's RAM",
     "KVM_RUN ends with an internal error", _FIX_SOURCE, "measured", _ALL),
    ("X-08", WARNING, "VM_HSAVE_PA is 0 in guest mode", "L1's next VMRUN gets #GP (5.14 and later)",
     _FIX_SOURCE, "nested.c nested_svm_vmrun", _ALL),
    ("X-09", WARNING, "L1's RAX is not vmcb12's address",
     "VMRUN takes the address from RAX, so this L1 did not execute it", _FIX_SOURCE,
     "AMD APM volume 2, 15.5.1", _ALL),
    ("X-10", ERROR, "the vCPU is in SMM and in guest mode", "EINVAL (SV-04)", _FIX_SOURCE,
     _SET, _ALL),
    ("Q-01", ERROR, "QEMU is older than 5.1", "it does not restore nested SVM state at all",
     "use QEMU 5.1 or later", "QEMU target/i386/kvm.c, 5.1", _ALL),
    ("Q-02", WARNING, "QEMU is older than the machine type", "it does not know this machine",
     "use a QEMU at least as new, or an older machine type", "QEMU hw/i386/pc_piix.c", _ALL),
    ("Q-03", ERROR, "a subsection of the vCPU is newer than QEMU",
     "it refuses the section 'cpu' (No such file or directory)",
     "use a QEMU that knows it; an older machine type does not help",
     "QEMU migration/vmstate.c vmstate_subsection_load", _ALL),
)  # fmt: skip


def _check_kernels(check: str) -> tuple[str, ...]:
    return tuple(name for name in PROFILES if check in PROFILES[name].checks)


def _ordering(rule: OrderRule) -> Rule:
    # Rules about the order of ioctls have their words where traces are judged.
    harmless = not rule.broken
    return Rule(
        rule.id,
        rule.severity.value,
        rule.rule if harmless else f"not so: {rule.rule}",
        rule.broken or "nothing: either order is right",
        rule.advice or "nothing",
        rule.source,
        scope=rule.kernels,
    )


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **{
            check: Rule(check, ERROR, when, means, do, source, _check_kernels(check))
            for check, when, means, do, source in _CHECKS
        },
        **{
            rule: Rule(rule, severity, when, means, do, source, kernels)
            for rule, severity, when, means, do, source, kernels in _OTHERS
        },
        **{rule.id: _ordering(rule) for rule in ORDERS if rule.id != "O-28"},
    }
)
"""All rules by id."""
