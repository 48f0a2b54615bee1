"""Whose the fields of a VMCB are: L1's, shared with L2, or nobody's after a migration.

Source: AMD64 APM volume 2, 15.5.1 and 15.5.2 (VMRUN, VMLOAD, #VMEXIT); Linux
``arch/x86/kvm/svm/nested.c`` (``nested_copy_vmcb_control_to_cache``,
``svm_copy_vmrun_state``), 5.8 to 7.2.
"""

from __future__ import annotations

L1_STATE = frozenset(
    {"es", "cs", "ss", "ds", "gdtr", "idtr", "efer", "cr4", "cr3", "cr0", "rflags", "rip"}
    | {"rsp", "rax"}
)
"""Fields of the save area that KVM loads as L1's on every kernel since 5.8."""

L1_STATE_SINCE_7 = frozenset(
    {"s_cet", "ssp", "isst_addr", "dbgctl", "br_from", "br_to", "last_excp_from", "last_excp_to"}
)
"""Fields that are L1's too since 7.x, on hosts with the feature."""

VMLOAD_SEGMENTS = ("fs", "gs", "tr", "ldtr")
VMLOAD_MSRS = (
    *("star", "lstar", "cstar", "sfmask", "kernel_gs_base"),
    *("sysenter_cs", "sysenter_esp", "sysenter_eip"),
)
VMLOAD_GROUP = VMLOAD_SEGMENTS + VMLOAD_MSRS
"""Fields of the save area that VMLOAD and VMSAVE transfer; VMRUN and #VMEXIT do not,
so L1 and L2 share them."""

NOT_MIGRATED = frozenset(
    {"avic_vapic_bar", "ghcb_gpa", "clean", "insn_len", "insn_bytes", "avic_backing_page"}
    | {"avic_logical_id", "avic_physical_id", "vmsa_pa", "bus_lock_counter"}
    | {"allowed_sev_features", "guest_sev_features", "hv_enlightenments"}
)
"""Fields of the control area that KVM never caches, so they are zero after a restore."""
