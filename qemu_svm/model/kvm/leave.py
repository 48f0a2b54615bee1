"""Leaving guest mode by force (``arch/x86/kvm/svm/nested.c``, 5.10 to 7.2).

A module of its own because ``svm_set_efer`` needs it too.
"""

from __future__ import annotations

from qemu_svm.model.kvm.vcpu import INVALID_GPA, PAGES, KvmVcpu, Mmu


def svm_leave_nested(vcpu: KvmVcpu) -> None:
    """Leave guest mode by force (5.10 to 7.2)."""
    nested = vcpu.nested
    if vcpu.guest_mode:
        nested.run_pending = 0
        if vcpu.kernel.split:
            nested.vmcb12_gpa = INVALID_GPA
        vcpu.guest_mode = False
        vcpu.mmu, vcpu.mmu_broken = Mmu.ROOT, None
        if not vcpu.kernel.split:
            vcpu.control01.clear()
            vcpu.control01.copy_from(vcpu.hsave_control)
        if vcpu.kernel.leave_sets_gif:
            vcpu.gif = True
    vcpu.requests.discard(PAGES)


def svm_free_nested(vcpu: KvmVcpu) -> None:
    """Free vmcb02 and the merged bitmap."""
    vcpu.nested.initialized = False
    vcpu.nested.last_vmcb12_gpa = INVALID_GPA
    vcpu.vmcb02.clear()
