"""Register writes, as in ``arch/x86/kvm/svm/svm.c``.

Whether a write goes to vmcb01 or vmcb02 depends on guest mode; the VMLOAD group always
goes to vmcb01.  Read in 5.10, 6.1 and 7.2.
"""

from __future__ import annotations

from qemu_svm.model.area import Writer
from qemu_svm.model.kvm.leave import svm_free_nested, svm_leave_nested
from qemu_svm.model.kvm.vcpu import KvmVcpu, reset_save
from qemu_svm.nested.groups import VMLOAD_GROUP
from qemu_svm.x86.registers import CR0, CR4, EFER
from qemu_svm.x86.segments import Segment

_SVME = EFER.mask("SVME")
_LME, _LMA = EFER.mask("LME"), EFER.mask("LMA")
_VM_CR_VALID, _VM_CR_LOCK, _VM_CR_SVMDIS = 0x1F, 0x08, 0x10


def svm_set_gif(vcpu: KvmVcpu, value: int) -> None:
    """Set the global interrupt flag (``svm.h``, ``svm_set_gif`` in ``svm.c``)."""
    vcpu.gif = bool(value)


def svm_set_efer(vcpu: KvmVcpu, efer: int, writer: Writer) -> None:
    """Set EFER; a change of SVME allocates or frees the nested state (5.10 to 7.2)."""
    old = vcpu.arch.get("efer")
    vcpu.arch.set("efer", efer, writer)
    hardware = efer
    if not vcpu.host.npt:
        hardware |= EFER.mask("NX")
        if not efer & _LMA:
            hardware &= ~_LME
    if (old ^ efer) & _SVME:
        if efer & _SVME:
            vcpu.nested.initialized = True
        else:
            if vcpu.guest_mode:
                vcpu.note("EFER.SVME was cleared in guest mode: the vCPU left guest mode, and "
                          "what this call had written to L2's VMCB is lost")  # fmt: skip
            svm_leave_nested(vcpu)
            if vcpu.kernel.svme_clear_sets_gif:
                svm_set_gif(vcpu, 1)
            if not vcpu.smm:
                svm_free_nested(vcpu)
    vcpu.current.set("efer", hardware | _SVME, writer)


def svm_set_cr0(vcpu: KvmVcpu, cr0: int, writer: Writer) -> None:
    """Set CR0; CD and NW never reach the hardware under the default quirk.

    Without NPT, a change of paging also writes the current CR4 to the active VMCB.
    """
    paging, pg = vcpu.arch.get("cr0") & CR0.mask("PG"), cr0 & CR0.mask("PG")
    efer = vcpu.arch.get("efer")
    if efer & _LME and bool(paging) != bool(pg):
        vcpu.arch.set("efer", efer | _LMA if pg else efer & ~_LMA, writer)
        hardware = vcpu.current.get("efer")
        both = _LMA | _LME
        vcpu.current.set("efer", hardware | both if pg else hardware & ~both, writer)
    vcpu.arch.set("cr0", cr0, writer)
    hardware = cr0 & ~CR0.mask("CD", "NW")
    if not vcpu.host.npt:
        hardware |= CR0.mask("PG", "WP")
        if vcpu.kernel.paging_writes_cr4 and bool(paging) != bool(pg):
            svm_set_cr4(vcpu, vcpu.arch.get("cr4"), writer)
    vcpu.current.set("cr0", hardware, writer)
    vcpu.cr0_intercepted = hardware != cr0


def svm_set_cr4(vcpu: KvmVcpu, cr4: int, writer: Writer) -> None:
    """Set CR4; the hardware has the host's MCE, and PAE always without NPT."""
    vcpu.arch.set("cr4", cr4, writer)
    hardware = cr4 | CR4.mask("MCE") | (0 if vcpu.host.npt else CR4.mask("PAE"))
    vcpu.current.set("cr4", hardware, writer)


def svm_set_segment(vcpu: KvmVcpu, name: str, segment: Segment, writer: Writer) -> None:
    """Set a segment; SS also sets CPL."""
    area = vcpu.vmcb01 if name in VMLOAD_GROUP else vcpu.current
    area.set(name, segment, writer)
    if name == "ss":
        area.set("cpl", segment.dpl, writer)


def svm_set_descriptor_table(
    vcpu: KvmVcpu, name: str, base: int, limit: int, writer: Writer
) -> None:
    """Set GDTR or IDTR (``svm_set_gdt``, ``svm_set_idt``)."""
    vcpu.current.set(name, Segment(0, base, limit, 0), writer)


def svm_set_rflags(vcpu: KvmVcpu, rflags: int, writer: Writer) -> None:
    """Set RFLAGS in the active VMCB."""
    vcpu.current.set("rflags", rflags, writer)


def svm_set_dr7(vcpu: KvmVcpu, dr7: int, writer: Writer) -> None:
    """Set DR7 in the active VMCB."""
    vcpu.current.set("dr7", dr7, writer)


def init_vmcb(vcpu: KvmVcpu) -> None:
    """Reset the VMCB and what belongs to it, as 5.10 does after a SHUTDOWN intercept.

    General registers, CR2, CR3 and the debug registers stay as they are (``init_vmcb`` and
    ``shutdown_interception`` of 5.10).
    """
    writer = vcpu.writer("init_vmcb")
    vcpu.guest_mode = vcpu.smm = False
    vcpu.nested.run_pending = 0
    vcpu.nested.vmcb12_gpa = 0
    for name, value in reset_save().items():
        vcpu.vmcb01.set(name, value, writer)
    if vcpu.host.npt:
        vcpu.vmcb01.set("g_pat", vcpu.arch.get("pat"), writer)
    vcpu.control01.clear()
    vcpu.control01.set("int_state", 0, writer)
    svm_set_cr4(vcpu, 0, writer)
    svm_set_efer(vcpu, 0, writer)
    svm_set_cr0(vcpu, CR0.mask("NW", "CD", "ET"), writer)
    vcpu.arch.set("rip", vcpu.vmcb01.get("rip"), writer)
    svm_set_gif(vcpu, 1)


def svm_set_vm_cr(vcpu: KvmVcpu, value: int, writer: Writer) -> str | None:
    """Set VM_CR (5.10 to 7.2); the value is kept even if a late check fails."""
    if value & ~_VM_CR_VALID:
        return "U-02"
    old = vcpu.arch.get("vm_cr")
    frozen = _VM_CR_LOCK | _VM_CR_SVMDIS if old & _VM_CR_SVMDIS else 0
    vcpu.arch.set("vm_cr", value & ~frozen | old & frozen, writer)
    if vcpu.arch.get("vm_cr") & _VM_CR_SVMDIS and vcpu.arch.get("efer") & _SVME:
        vcpu.note("VM_CR disables SVM while EFER.SVME is set: refused, but the value is kept")
        return "U-02"
    return None


def svm_set_interrupt_shadow(vcpu: KvmVcpu, shadow: int, writer: Writer) -> None:
    """Set the interrupt shadow in the active VMCB's ``int_state``."""
    state = vcpu.current_control.get("int_state") & ~1 | bool(shadow)
    vcpu.current_control.set("int_state", state, writer)
