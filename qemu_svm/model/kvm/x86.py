"""The other ioctls of a restore, as in ``arch/x86/kvm/x86.c``.

Each function returns the id of the check that failed (the ioctl then fails with
EINVAL), or None.  Read in 5.10.262, 6.1.192, 6.12.117, 7.2.12.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from qemu_svm.model.area import Area, Writer
from qemu_svm.model.kvm import svm
from qemu_svm.model.kvm.checks import SET_SREGS
from qemu_svm.model.kvm.lapic import init_blocked
from qemu_svm.model.kvm.leave import svm_leave_nested
from qemu_svm.model.kvm.nested import nested_npt_enabled
from qemu_svm.model.kvm.vcpu import (
    APIC_BSP,
    GPRS,
    INIT_RECEIVED,
    RUNNABLE,
    SIPI_RECEIVED,
    KvmVcpu,
    MmuFault,
)
from qemu_svm.model.profile import SREGS2_CHECK, LateCpuid, SysenterCut
from qemu_svm.x86.cpuid import NONE, Cpuid, efer_reserved
from qemu_svm.x86.cpuid_entries import Entries
from qemu_svm.x86.msrs import pat_valid
from qemu_svm.x86.registers import CR0, EFER, canonical

_SHARED_MSRS = (*("star", "lstar", "cstar", "sfmask", "kernel_gs_base", "sysenter_cs"),)
_SYSENTER_ADDRESSES = ("sysenter_esp", "sysenter_eip")
_BASES = {"fs_base": "fs", "gs_base": "gs"}
_CANONICAL = frozenset({"lstar", "cstar", "kernel_gs_base", *_BASES})
_TSC_RATIO_ONE, _TSC_RATIO_RESERVED = 1 << 32, 0xFFFF_FF00_0000_0000
_CR8 = 0xF
_LMA = EFER.mask("LMA")
_LATE_CPUID = {
    LateCpuid.EFAULT: (MmuFault.EFAULT, MmuFault.EIO),
    LateCpuid.HANG: (MmuFault.HANG, None),
}
"""The state of the MMU afterwards, if L1 is in long mode and if it is not."""
_RESET_RIP, _RESET_CS, _RESET_BASE = 0xFFF0, 0xF000, 0xFFFF_0000
_HIGH = 0xFFFF_FFFF_0000_0000
_EVENT_FLAGS = {"nmi_pending": 1, "sipi": 2, "shadow": 4, "smm": 8, "payload": 16, "triple": 32}


def kvm_set_cpuid(vcpu: KvmVcpu, cpuid: Cpuid, entries: Entries | None = None) -> str | None:
    """KVM_SET_CPUID2 (``cpuid.c``).

    :param entries: all of it, if it is known: ``kvm_cpuid_check_equal`` compares every entry.
    """
    kernel = vcpu.kernel
    same = cpuid == vcpu.cpuid and (None in (entries, vcpu.entries) or entries == vcpu.entries)
    if vcpu.guest_mode and kernel.late_cpuid is LateCpuid.REFUSED:
        return None if same else "U-01"
    if vcpu.has_run and kernel.cpuid_fixed:
        return None if same else "U-01"
    vcpu.cpuid, vcpu.entries = cpuid, entries
    _cut_sysenter(vcpu, _SYSENTER_ADDRESSES)
    if vcpu.mmu_broken is MmuFault.UNINITIALISED:
        vcpu.mmu_broken = None
    if vcpu.guest_mode and nested_npt_enabled(vcpu) and kernel.late_cpuid in _LATE_CPUID:
        # kvm_mmu_after_set_cpuid zeroes the roles of all MMUs; only those that
        # are not in use are rebuilt.  Nested paging of an L1 without long mode has
        # three levels: mmu_alloc_shadow_roots then misses its PAE root (6.1), or
        # does not need what is gone (6.6 and later).
        long_mode = vcpu.l1_save.get("efer") & _LMA
        vcpu.mmu_broken = _LATE_CPUID[kernel.late_cpuid][0 if long_mode else 1]
        if vcpu.mmu_broken:
            vcpu.note("KVM_SET_CPUID2 in guest mode destroys the MMU that nested paging needs")
    return None


def set_sregs(vcpu: KvmVcpu, sregs: Area, *, second: bool = False) -> str | None:
    """KVM_SET_SREGS and SREGS2 (``__set_sregs_common``; ``regs.c`` since 7.2).

    :param second: the ioctl is KVM_SET_SREGS2, which kernels before 5.14 do not have.
    """
    if second and not vcpu.kernel.has_sregs2:
        return "R-06"
    checks = (SREGS2_CHECK, *vcpu.kernel.sregs) if second else vcpu.kernel.sregs
    for check in checks:
        if SET_SREGS[check](vcpu, sregs):
            return check
    writer = vcpu.writer("__set_sregs")
    for name in ("idtr", "gdtr"):
        table = sregs.segment(name)
        svm.svm_set_descriptor_table(vcpu, name, table.base, table.limit, writer)
    changed = any(sregs.get(name) != vcpu.arch.get(name) for name in ("cr0", "cr3", "cr4", "efer"))
    vcpu.arch.set("cr2", sregs.get("cr2"), writer)
    vcpu.arch.set("cr3", sregs.get("cr3"), writer)
    # Without a value of its own, user space sends that of the reset.
    base = sregs.get("apic_base") if "apic_base" in sregs else vcpu.host.apic_base
    if vcpu.kernel.forces_bsp and not vcpu.host.irqchip:
        base |= APIC_BSP
    vcpu.arch.set("apic_base", base, writer)
    if not sregs.get("cr8") & ~_CR8 and not vcpu.host.irqchip:  # else it is the APIC's TPR
        vcpu.arch.set("cr8", sregs.get("cr8"), writer)
    svm.svm_set_efer(vcpu, sregs.get("efer"), writer)
    svm.svm_set_cr0(vcpu, sregs.get("cr0"), writer)
    svm.svm_set_cr4(vcpu, sregs.get("cr4"), writer)
    for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldtr"):
        svm.svm_set_segment(vcpu, name, sregs.segment(name), writer)
    if vcpu.host.bsp and vcpu.arch.get("rip") == _RESET_RIP and _at_reset(sregs):
        vcpu.mp_state = RUNNABLE  # for user space that does not say so itself
    vcpu.pdptrs_from_userspace = second and "pdptr0" in sregs
    if changed and vcpu.mmu_broken is MmuFault.UNINITIALISED:
        vcpu.mmu_broken = None
        vcpu.note("a change of the control registers sets up the MMU for nested paging")
    return None


def _at_reset(sregs: Area) -> bool:
    code = sregs.segment("cs")
    at_vector = code.selector == _RESET_CS and code.base == _RESET_BASE
    return at_vector and not sregs.get("cr0") & CR0.mask("PE")


def set_regs(vcpu: KvmVcpu, regs: Mapping[str, int]) -> None:
    """KVM_SET_REGS (``__set_regs``): the same registers in guest mode and outside."""
    writer = vcpu.writer("__set_regs")
    for name in (*GPRS, "rip"):
        if name in regs:
            vcpu.arch.set(name, regs[name], writer)
    if "rflags" in regs:
        svm.svm_set_rflags(vcpu, regs["rflags"] | 2, writer)


def set_msr(vcpu: KvmVcpu, name: str, value: int) -> str | None:
    """One MSR of KVM_SET_MSRS, written by userspace (``svm_set_msr``, ``__kvm_set_msr``).

    DEBUGCTL has no effect, as on hosts without LBR virtualisation.
    """
    writer = vcpu.writer("kvm_set_msr")
    if _impossible(vcpu, name, value):
        return "U-02"
    if name == "efer":
        svm.svm_set_efer(vcpu, value & ~_LMA | vcpu.arch.get("efer") & _LMA, writer)
    elif name in _SYSENTER_ADDRESSES:
        vcpu.vmcb01.set(name, canonical(value), writer)  # get_canonical
        _cut_sysenter(vcpu, (name,))
    elif name in _SHARED_MSRS:
        vcpu.vmcb01.set(name, value, writer)
    elif name in _BASES:
        segment = replace(vcpu.vmcb01.segment(_BASES[name]), base=value)
        vcpu.vmcb01.set(_BASES[name], segment, writer)
    elif name == "pat":
        _set_pat(vcpu, value, writer)
    elif name == "vm_hsave_pa":
        vcpu.arch.set("vm_hsave_pa", value & ~0xFFF, writer)
    elif name == "vm_cr":
        return svm.svm_set_vm_cr(vcpu, value, writer)
    else:
        vcpu.arch.set(name, value, writer)
    return None


def _set_pat(vcpu: KvmVcpu, value: int, writer: Writer) -> None:
    vcpu.arch.set("pat", value, writer)
    if vcpu.kernel.pat_needs_npt and not vcpu.host.npt:
        return
    vcpu.vmcb01.set("g_pat", value, writer)
    if vcpu.guest_mode and not (vcpu.host.separate_pat and nested_npt_enabled(vcpu)):
        vcpu.current.set("g_pat", value, writer)


def _cut_sysenter(vcpu: KvmVcpu, names: Iterable[str]) -> None:
    # The upper halves are kept for guests with an Intel CPUID only (svm_set_msr).
    cut = vcpu.kernel.sysenter
    if cut is SysenterCut.ALWAYS or (cut is SysenterCut.CPUID and vcpu.cpuid != NONE):
        for name in names:
            value = vcpu.vmcb01.get(name) & ~_HIGH
            vcpu.vmcb01.set(name, value, vcpu.vmcb01.writer(name))


def _impossible(vcpu: KvmVcpu, name: str, value: int) -> bool:
    kernel = vcpu.kernel
    if name == "efer":
        return bool(value & efer_reserved(vcpu.host.cpuid))
    if name == "pat":
        return not pat_valid(value)
    if name == "tsc_ratio":
        scaling = vcpu.host.cpuid.has("tscratemsr") and vcpu.cpuid.has("tscratemsr")
        good = not value & _TSC_RATIO_RESERVED if scaling else value in (0, _TSC_RATIO_ONE)
        return not (kernel.tsc_ratio_msr and good)
    if name in _BASES and not kernel.base_msrs:
        return True
    if name == "tsc_aux":
        # guest_cpuid_is_intel_compatible: so is a guest without CPUID on newer kernels.
        return kernel.sysenter is SysenterCut.CPUID and vcpu.cpuid == NONE and bool(value & _HIGH)
    # Canonical with 4-level paging: bits 63 to 47 are equal.
    return name in _CANONICAL and value >> 47 not in (0, 0x1FFFF)


def set_debugregs(vcpu: KvmVcpu, values: Mapping[str, int]) -> str | None:
    """KVM_SET_DEBUGREGS."""
    if values.get("flags") or (values["dr6"] | values["dr7"]) & _HIGH:
        return "U-03"
    writer = vcpu.writer("kvm_vcpu_ioctl_x86_set_debugregs")
    for name in ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7"):
        vcpu.arch.set(name, values[name], writer)
    svm.svm_set_dr7(vcpu, values["dr7"], writer)
    return None


def set_vcpu_events(vcpu: KvmVcpu, events: Mapping[str, int]) -> str | None:
    """KVM_SET_VCPU_EVENTS: exceptions, NMI, interrupt shadow, SMM."""
    flags = events["flags"]
    late = vcpu.kernel.triple_fault and flags & _EVENT_FLAGS["triple"]
    if flags & ~(0x3F if late else 0x1F):
        return "U-04"
    if flags & _EVENT_FLAGS["payload"] and not vcpu.host.exception_payload:
        return "U-04"  # needs KVM_CAP_EXCEPTION_PAYLOAD
    stuffed = events.get("exc_injected") or (flags & 16 and events.get("exc_pending"))
    vector = events.get("exc_nr", 0)
    if stuffed and (vector > 31 or vector == 2):
        return "U-04"
    smm = flags & _EVENT_FLAGS["smm"]
    replaced = flags & _EVENT_FLAGS["payload"] and events.get("exc_pending")
    held = events.get("smm") or events.get("smm_pending")
    waiting = vcpu.mp_state == INIT_RECEIVED
    if smm and held and waiting and vcpu.kernel.gif_blocks_init:
        return "U-04"
    writer = vcpu.writer("kvm_vcpu_ioctl_x86_set_vcpu_events")
    injected = events.get("exc_injected") and not replaced
    vcpu.injected_error = events.get("exc_err", 0) if injected else None
    if flags & _EVENT_FLAGS["shadow"]:
        svm.svm_set_interrupt_shadow(vcpu, events.get("shadow", 0), writer)
    if smm and bool(events.get("smm", 0)) != vcpu.smm:
        if vcpu.kernel.smm_leaves:
            if vcpu.guest_mode:
                vcpu.note("SMM was toggled in guest mode: the vCPU left guest mode")
            svm_leave_nested(vcpu)
        elif vcpu.guest_mode:
            vcpu.note(
                "SMM was toggled in guest mode: this kernel keeps both, which is inconsistent"
            )
        vcpu.smm = bool(events["smm"])
    if smm:
        vcpu.smi_pending = bool(events.get("smm_pending"))
        vcpu.init_pending = bool(vcpu.host.irqchip and events.get("latched_init"))
    if late and not vcpu.host.triple_fault_event:
        # KVM_CAP_X86_TRIPLE_FAULT_EVENT is not enabled; it looks only now.
        vcpu.note("the call failed after everything but the triple fault was set")
        return "U-04"
    return None


def set_mp_state(vcpu: KvmVcpu, state: int) -> str | None:
    """KVM_SET_MP_STATE."""
    if not vcpu.host.irqchip and state != 0:
        return "U-05"
    if state and vcpu.kernel.mp_states is not None and state not in vcpu.kernel.mp_states:
        return "U-05"
    refuses = vcpu.kernel.gif_blocks_init and (vcpu.smi_pending or init_blocked(vcpu))
    if state in (INIT_RECEIVED, SIPI_RECEIVED) and refuses:
        return "U-05"
    # SIPI is kept as a pending event of a vCPU that got INIT.
    vcpu.sipi_pending = vcpu.sipi_pending or state == SIPI_RECEIVED
    vcpu.mp_state = INIT_RECEIVED if state == SIPI_RECEIVED else state
    return None
