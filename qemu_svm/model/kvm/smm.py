"""SMM while L2 runs: entry leaves guest mode, RSM returns to it.

RSM is the only other place that fills the save cache.  It does so from vmcb12 in
memory, which is right: SMM entry has written L2's state there.

Source: Linux ``arch/x86/kvm/svm/svm.c`` (``svm_enter_smm``, ``svm_leave_smm``),
5.15, 6.1, 7.2.
"""

from __future__ import annotations

from qemu_svm.model.kvm.nested import (
    enter_svm_guest_mode,
    nested_copy_vmcb_control_to_cache,
    nested_svm_vmexit,
)
from qemu_svm.model.kvm.vcpu import PAGES, VMRUN_FIELDS, KvmVcpu


def svm_enter_smm(vcpu: KvmVcpu) -> str | None:
    """Enter SMM; return why that fails, or None."""
    vcpu.smram = None
    if vcpu.guest_mode:
        address = vcpu.nested.vmcb12_gpa
        # With a run pending the SMI waits until L2 has been entered once.
        vcpu.nested.run_pending = 0
        if not nested_svm_vmexit(vcpu):
            return "shutdown: vmcb12 cannot be written"
        vcpu.smram = address
        vcpu.hsave_page.copy_from(vcpu.l1_save, VMRUN_FIELDS)
    vcpu.smm = True
    return None


def svm_leave_smm(vcpu: KvmVcpu) -> str | None:
    """Leave SMM by RSM; return why that fails, or None."""
    if not vcpu.smm:
        return "#UD: RSM outside SMM"
    vcpu.smm = False
    if vcpu.smram is None:
        return None
    writer = vcpu.writer("svm_leave_smm")
    vcpu.l1_save.copy_from(vcpu.hsave_page)
    nested = vcpu.nested
    nested.initialized = True
    nested.ctl = nested_copy_vmcb_control_to_cache(vcpu, vcpu.vmcb12_control)
    used = vcpu.vmcb12.copy("vmcb12 as used")
    if vcpu.kernel.has_save_cache:
        cached = vcpu.kernel.vmrun.cached
        nested.save.copy_from(vcpu.vmcb12, (name for name in vcpu.vmcb12 if name in cached))
        nested.save_valid = True
        used.copy_from(vcpu.save_cache(cached, "svm_leave_smm"))
    vcpu.smram = None
    failed = enter_svm_guest_mode(vcpu, used, writer, merged=False)
    vcpu.requests.add(PAGES)
    return failed
