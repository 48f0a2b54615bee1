"""KVM_RUN: pending work, the first entry, the first #VMEXIT to L1.

Guest code is not modelled: L2 is assumed to run until something that L1 intercepts, unless
the caller knows better (:class:`GuestCode`).

Source: Linux ``arch/x86/kvm/x86.c`` (``vcpu_enter_guest``),
``arch/x86/kvm/svm/svm.c`` (``svm_vcpu_run``, ``svm_handle_exit``,
``shutdown_interception``), 5.10 to 7.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from qemu_svm.model.area import Area
from qemu_svm.model.kvm.lapic import enters_smm, kvm_apic_accept_events
from qemu_svm.model.kvm.nested import (
    nested_svm_vmexit,
    nested_sync_control_from_vmcb02,
    svm_get_nested_state_pages,
)
from qemu_svm.model.kvm.svm import init_vmcb, svm_set_rflags
from qemu_svm.model.kvm.vcpu import HALTED, PAGES, RESET_HOLD, RUNNABLE, KvmVcpu, MmuFault, RunEnd
from qemu_svm.model.profile import Shutdown
from qemu_svm.nested import bits
from qemu_svm.nested.groups import VMLOAD_SEGMENTS
from qemu_svm.x86.registers import CR0, EFER, RFLAGS, canonical

_VMRUN_BASES = ("es", "cs", "ss", "ds", "gdtr", "idtr")
_ET = CR0.mask("ET")
_RFLAGS = 0xFFFF_FFFF
_DR6_ACTIVE_LOW = 0xFFFF_0FF0
_EFER = EFER.mask(*(name for _, name in EFER.items()))


_RF = RFLAGS.mask("RF")
_DF, _GP = 8, 13
_CR0_WRITE, _SHUTDOWN = (bits.INTERCEPTS.mask(name) for name in ("CR0_WRITE", "SHUTDOWN"))
_DF_INTERCEPT, _GP_INTERCEPT = (
    bits.INTERCEPTS.mask(name) for name in ("EXCEPTION_DF", "EXCEPTION_GP")
)


class GuestCode(StrEnum):
    """What L2's code does in a run."""

    EXITS = "exits"
    """Something that L1 intercepts."""
    STAYS = "stays"
    """Something that ends KVM_RUN, and that L1 does not intercept."""


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


def vcpu_run(vcpu: KvmVcpu, code: GuestCode = GuestCode.EXITS) -> Outcome:
    """Run the vCPU until L1 has control (``vcpu_run``, ``vcpu_block``).

    :param code: what L2's code does, if L2 is entered.
    """
    if vcpu.dead:
        return Outcome(RunEnd.EIO)
    if not vcpu.host.irqchip:
        # kvm_run->cr8, by which user space gives its APIC's TPR; a replay leaves it 0.
        vcpu.arch.set("cr8", 0, vcpu.writer("kvm_arch_vcpu_ioctl_run"))
    stopped = kvm_apic_accept_events(vcpu)
    if stopped is not None:
        return Outcome(stopped)
    halted = vcpu.mp_state in (HALTED, RESET_HOLD)
    if halted:
        vcpu.note("the vCPU is halted: KVM_RUN waits for an event first")
        vcpu.mp_state = RUNNABLE
    if vcpu.mp_state != RUNNABLE:
        return Outcome(RunEnd.WAITS)
    return replace(_woken(vcpu, code), halted=halted)


def _woken(vcpu: KvmVcpu, code: GuestCode) -> Outcome:
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
    return _entered(vcpu, code)


def _entered(vcpu: KvmVcpu, code: GuestCode) -> Outcome:
    entry = enter(vcpu)
    if not vcpu.guest_mode:
        vcpu.vmcb01.set("dr6", _DR6_ACTIVE_LOW, vcpu.writer("svm_set_dr6"))
        return Outcome(RunEnd.L1, "L1", entry)
    nested_sync_control_from_vmcb02(vcpu)
    vcpu.nested.run_pending = 0
    if code is GuestCode.STAYS:
        return Outcome(RunEnd.L2, "L2", entry)
    returned = nested_svm_vmexit(vcpu)
    if vcpu.dead:
        return Outcome(RunEnd.EIO, "L2", entry)
    if not returned:
        return _without_l1(vcpu, entry)
    # L1 has control, so the processor was given its VMCB (svm_vcpu_run, svm_set_dr6).
    vcpu.vmcb01.copy_from(vcpu.arch, ("cr2",))
    vcpu.vmcb01.set("dr6", _DR6_ACTIVE_LOW, vcpu.writer("svm_set_dr6"))
    _as_processor_has_it(vcpu)
    return Outcome(RunEnd.EXIT, "L2", entry, _l1(vcpu))


def _without_l1(vcpu: KvmVcpu, entry: Area) -> Outcome:
    if not vcpu.guest_mode:
        return Outcome(RunEnd.SHUTDOWN, "L2", entry, _l1(vcpu))
    # vmcb12 cannot be written: kvm_inject_gp, and L2 goes on.
    intercepts = vcpu.nested.ctl.get("intercepts")
    vector = _GP
    if intercepts & _GP_INTERCEPT:
        if vcpu.kernel.exceptions_morphed:
            vcpu.note(
                "L2 gets #GP, which L1 intercepts: KVM tries the same #VMEXIT again and again"
            )
            return Outcome(RunEnd.HANG, "L2", entry)
        vcpu.note("L2 gets #GP, which L1 intercepts, and as that fails too, #DF")
        vector = _DF
    handled = vcpu.current.segment("idtr").limit >= (vector + 1) * _gate_size(vcpu) - 1
    if handled and not (vector == _DF and intercepts & _DF_INTERCEPT):
        vcpu.note("L2 continues with its own handler")
        return Outcome(RunEnd.L2, "L2", entry)
    vcpu.note("nothing handles it: a triple fault")
    # The processor reports it if neither KVM nor L1 has intercepted what came before.
    reported = vector == _GP and not intercepts & _SHUTDOWN
    if reported and vcpu.kernel.shutdown is Shutdown.RESET:
        vcpu.note("KVM resets the vCPU, except for its general registers, CR2 and CR3")
        init_vmcb(vcpu)
    elif vector == _GP:
        flags = vcpu.current.get("rflags") | _RF
        svm_set_rflags(vcpu, flags, vcpu.writer("inject_pending_event"))
    return Outcome(RunEnd.SHUTDOWN, "L2", entry)


def _gate_size(vcpu: KvmVcpu) -> int:
    # Of an IDT entry in long mode, protected mode, real mode.
    if vcpu.arch.get("efer") & EFER.mask("LMA"):
        return 16
    return 8 if vcpu.arch.get("cr0") & CR0.mask("PE") else 4


def _refused(vcpu: KvmVcpu) -> bool:
    # Bits of EFER that do not exist make VMRUN fail before it needs any memory.
    return bool(vcpu.arch.get("efer") & ~_EFER)


def enter(vcpu: KvmVcpu) -> Area:
    """Fill the active VMCB from the vCPU's registers (``svm_vcpu_run``)."""
    vcpu.has_run = True
    vcpu.smi_pending = False
    if vcpu.guest_mode and vcpu.injected_error is not None:
        writer = vcpu.writer("svm_inject_exception")
        vcpu.current_control.set("event_inj_err", vcpu.injected_error, writer)
    vcpu.injected_error = None
    current = vcpu.current
    current.copy_from(vcpu.arch, ("rax", "rsp", "rip", "cr2"))
    current.set("dr6", _DR6_ACTIVE_LOW, vcpu.writer("svm_set_dr6"))
    if vcpu.host.npt:
        current.copy_from(vcpu.arch, ("cr3",))
    _as_processor_has_it(vcpu)
    seen = current.copy("entry")
    # Without NPT the hardware runs on shadow pages, and reads of DR6 are intercepted; what
    # counts is the guest's view.
    seen.copy_from(vcpu.arch, ("cr0", "cr3", "cr4", "efer", "dr6"))
    seen.copy_from(vcpu.arch, [name for name in vcpu.arch if name not in seen])
    return seen


def _as_processor_has_it(vcpu: KvmVcpu) -> None:
    # VMRUN and VMLOAD sign-extend bases from bit 47 (APM volume 2, 15.5.1); RFLAGS
    # has 32 bits and bit 1 set, and CR0 has ET set, regardless of what was loaded.
    current, arch = vcpu.current, vcpu.arch
    flags = current.get("rflags") & _RFLAGS | 2
    current.set("rflags", flags, current.writer("rflags"))
    if not _cr0_write_intercepted(vcpu):
        # svm_handle_exit takes CR0 from the VMCB where its writes are not intercepted.
        current.set("cr0", current.get("cr0") | _ET, current.writer("cr0"))
        arch.copy_from(current, ("cr0",))
    for area, names in ((current, _VMRUN_BASES), (vcpu.vmcb01, VMLOAD_SEGMENTS)):
        for name in names:
            segment = area.segment(name)
            if name in area and segment.base != canonical(segment.base):
                changed = replace(segment, base=canonical(segment.base))
                area.set(name, changed, area.writer(name))


def _cr0_write_intercepted(vcpu: KvmVcpu) -> bool:
    by_l1 = vcpu.guest_mode and vcpu.nested.ctl.get("intercepts") & _CR0_WRITE
    return vcpu.cr0_intercepted or bool(by_l1)


def _l1(vcpu: KvmVcpu) -> Area:
    seen = vcpu.vmcb01.copy("L1 after #VMEXIT")
    seen.copy_from(vcpu.arch, ("cr0", "cr3", "cr4", "efer", "rax", "rsp", "rip"))
    return seen
