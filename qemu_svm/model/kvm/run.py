"""KVM_RUN: pending work, the first entry, the first #VMEXIT to L1.

Guest code is not modelled: L2 is assumed to run until something that L1 intercepts.

Source: Linux ``arch/x86/kvm/x86.c`` (``vcpu_enter_guest``),
``arch/x86/kvm/svm/svm.c`` (``svm_vcpu_run``), 5.10 to 7.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qemu_svm.model.area import Area
from qemu_svm.model.kvm.lapic import enters_smm, kvm_apic_accept_events
from qemu_svm.model.kvm.nested import nested_svm_vmexit, svm_get_nested_state_pages
from qemu_svm.model.kvm.vcpu import HALTED, PAGES, RESET_HOLD, RUNNABLE, KvmVcpu, MmuFault, RunEnd
from qemu_svm.nested.groups import VMLOAD_SEGMENTS
from qemu_svm.x86.registers import CR0, EFER, canonical

_VMRUN_BASES = ("es", "cs", "ss", "ds", "gdtr", "idtr")
_ET = CR0.mask("ET")
_RFLAGS = 0xFFFF_FFFF
_DR6_ACTIVE_LOW = 0xFFFF_0FF0
_EFER = EFER.mask(*(name for _, name in EFER.items()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How KVM_RUN ended.

    :param level: the level that was entered: ``L1``, ``L2``, or empty if none was.
    :param entry: save area that the processor loaded.
    :param l1: L1's save area after the #VMEXIT, if there was one.
    :param halted: all this happens only after an event has woken the vCPU.
    """

    result: RunEnd
    level: str = ""
    entry: Area | None = None
    l1: Area | None = None
    halted: bool = False


_DESTROYED = {
    MmuFault.EFAULT: RunEnd.EFAULT,
    MmuFault.EIO: RunEnd.EIO,
    MmuFault.HANG: RunEnd.HANG,
}


def vcpu_run(vcpu: KvmVcpu) -> Outcome:
    """Run the vCPU until L1 has control (``vcpu_run``, ``vcpu_block``)."""
    stopped = kvm_apic_accept_events(vcpu)
    if stopped is not None:
        return Outcome(stopped)
    halted = vcpu.mp_state in (HALTED, RESET_HOLD)
    if halted:
        vcpu.note("the vCPU is halted: KVM_RUN waits for an event first")
        vcpu.mp_state = RUNNABLE
    if vcpu.mp_state != RUNNABLE:
        return Outcome(RunEnd.WAITS)
    return replace(_woken(vcpu), halted=halted)


def _woken(vcpu: KvmVcpu) -> Outcome:
    if vcpu.guest_mode and PAGES in vcpu.requests:
        if not vcpu.kernel.pages_rearmed:
            vcpu.requests.discard(PAGES)
        if not svm_get_nested_state_pages(vcpu):
            if not vcpu.kernel.pages_rearmed:
                vcpu.note("the next KVM_RUN continues without L1's MSR intercepts")
            return Outcome(RunEnd.INTERNAL_ERROR)
        vcpu.requests.discard(PAGES)
    if enters_smm(vcpu):
        return Outcome(RunEnd.SMI)
    if vcpu.guest_mode and vcpu.mmu_broken in _DESTROYED and not _refused(vcpu):
        return Outcome(_DESTROYED[vcpu.mmu_broken])
    entry = enter(vcpu)
    if not vcpu.guest_mode:
        return Outcome(RunEnd.L1, "L1", entry)
    vcpu.nested.run_pending = 0
    if not nested_svm_vmexit(vcpu):
        return Outcome(RunEnd.SHUTDOWN, "L2", entry, None if vcpu.guest_mode else _l1(vcpu))
    # L1 has control, so the processor was given its VMCB (svm_vcpu_run, svm_set_dr6).
    vcpu.vmcb01.copy_from(vcpu.arch, ("cr2",))
    vcpu.vmcb01.set("dr6", _DR6_ACTIVE_LOW, vcpu.writer("svm_set_dr6"))
    _as_processor_has_it(vcpu)
    return Outcome(RunEnd.EXIT, "L2", entry, _l1(vcpu))


def _refused(vcpu: KvmVcpu) -> bool:
    # Bits of EFER that do not exist make VMRUN fail before it needs any memory.
    return bool(vcpu.arch.get("efer") & ~_EFER)


def enter(vcpu: KvmVcpu) -> Area:
    """Fill the active VMCB from the vCPU's registers (``svm_vcpu_run``)."""
    vcpu.has_run = True
    vcpu.smi_pending = False
    current = vcpu.current
    current.copy_from(vcpu.arch, ("rax", "rsp", "rip", "cr2", "dr6"))
    if vcpu.host.npt:
        current.copy_from(vcpu.arch, ("cr3",))
    _as_processor_has_it(vcpu)
    seen = current.copy("entry")
    # Without NPT the hardware runs on shadow pages; what counts is the guest's view.
    seen.copy_from(vcpu.arch, ("cr0", "cr3", "cr4", "efer"))
    seen.copy_from(vcpu.arch, [name for name in vcpu.arch if name not in seen])
    return seen


def _as_processor_has_it(vcpu: KvmVcpu) -> None:
    # VMRUN and VMLOAD sign-extend bases from bit 47 (APM volume 2, 15.5.1); RFLAGS
    # has 32 bits and bit 1 set, and CR0 has ET set, regardless of what was loaded.
    current, arch = vcpu.current, vcpu.arch
    flags = current.get("rflags") & _RFLAGS | 2
    current.set("rflags", flags, current.writer("rflags"))
    if current.get("cr0") == arch.get("cr0"):
        # svm_handle_exit takes CR0 from the VMCB where its writes are not intercepted.
        for area in (current, arch):
            area.set("cr0", area.get("cr0") | _ET, area.writer("cr0"))
    for area, names in ((current, _VMRUN_BASES), (vcpu.vmcb01, VMLOAD_SEGMENTS)):
        for name in names:
            segment = area.segment(name)
            if name in area and segment.base != canonical(segment.base):
                changed = replace(segment, base=canonical(segment.base))
                area.set(name, changed, area.writer(name))


def _l1(vcpu: KvmVcpu) -> Area:
    seen = vcpu.vmcb01.copy("L1 after #VMEXIT")
    seen.copy_from(vcpu.arch, ("cr0", "cr3", "cr4", "efer", "rax", "rsp", "rip"))
    return seen
