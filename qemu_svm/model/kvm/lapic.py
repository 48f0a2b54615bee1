"""INIT, SIPI, SMI and MP states: what KVM_RUN handles before it enters the guest.

INIT and MP states need the local APIC in the kernel; without it every vCPU is runnable.

Source: Linux ``arch/x86/kvm/lapic.c`` (``kvm_apic_accept_events``), ``x86.c``
(``vcpu_block``, ``kvm_vcpu_has_events``, ``kvm_arch_vcpu_ioctl_run``), ``svm.c``
(``svm_apic_init_signal_blocked``), 5.10 to 7.2.
"""

from __future__ import annotations

from dataclasses import replace

from qemu_svm.model.kvm.svm import svm_set_segment
from qemu_svm.model.kvm.vcpu import INIT_RECEIVED, RUNNABLE, KvmVcpu, RunEnd
from qemu_svm.nested import bits

_INIT, _SMI = (bits.INTERCEPTS.mask(name) for name in ("INIT", "SMI"))


def init_blocked(vcpu: KvmVcpu) -> bool:
    """Whether INIT stays pending: in SMM, with GIF clear, on old kernels if L1 intercepts it."""
    return vcpu.smm or not vcpu.gif or (vcpu.kernel.init_intercept_blocks and _intercepted(vcpu))


def kvm_apic_accept_events(vcpu: KvmVcpu) -> RunEnd | None:
    """Handle a pending INIT or SIPI; return how KVM_RUN ends at once, or None.

    ``RESET`` after an INIT, ``EINVAL`` (``kvm_x86_vcpu_pre_run``, 7.2) if the vCPU waits for
    a SIPI that is blocked.  SIPI starts the vCPU at vector 0.
    """
    blocked = init_blocked(vcpu)
    if blocked and vcpu.mp_state == INIT_RECEIVED and not vcpu.kernel.gif_blocks_init:
        return RunEnd.EINVAL
    if vcpu.init_pending and not blocked:
        if not _intercepted(vcpu):
            return RunEnd.RESET
        vcpu.note("L1 intercepts INIT: L2 exits to L1 at once")
        return None
    sipi, vcpu.sipi_pending = vcpu.sipi_pending, False
    if sipi and not blocked and vcpu.mp_state == INIT_RECEIVED:
        writer = vcpu.writer("kvm_vcpu_deliver_sipi_vector")
        segment = replace(vcpu.current.segment("cs"), selector=0, base=0)
        svm_set_segment(vcpu, "cs", segment, writer)
        vcpu.arch.set("rip", 0, writer)
        vcpu.mp_state = RUNNABLE
    return None


def enters_smm(vcpu: KvmVcpu) -> bool:
    """Whether a pending SMI is handled before the guest is entered (``svm_smi_allowed``)."""
    intercepted = vcpu.guest_mode and bool(vcpu.nested.ctl.get("intercepts") & _SMI)
    return vcpu.smi_pending and vcpu.gif and not vcpu.smm and not intercepted


def _intercepted(vcpu: KvmVcpu) -> bool:
    return vcpu.guest_mode and bool(vcpu.nested.ctl.get("intercepts") & _INIT)
