"""A short description of each field of the nested state.

The two areas are not of one VMCB: the control area holds what **L1 asked for
L2**, the save area **L1's own state**, and neither holds L2's registers.

Source: AMD64 APM volume 2, 15.5 and appendix B; Linux
``arch/x86/kvm/svm/nested.c`` (``svm_get_nested_state``).
"""

from __future__ import annotations

AREAS = {
    "control": "what L1 asked for L2 (vmcb12's control area, as KVM cached it)",
    "save": "L1's own state at VMRUN, loaded at the next #VMEXIT",
    "registers": "the vCPU's registers: L2's while it is in guest mode",
}

HEADER = {
    "flags": "what the vCPU was doing",
    "format": "0 VMX, 1 SVM",
    "size": "bytes of header and data (128 without a VMCB, 4224 with one)",
    "vmcb_pa": "L1-physical address of vmcb12",
    "gpat": "L2's PAT, with nested paging and its own PAT (7.2)",
}

CONTROL = {
    "intercepts": "what L1 intercepts",
    "pause_filter_thresh": "PAUSE filter threshold",
    "pause_filter_count": "PAUSE filter count",
    "iopm_base_pa": "L1's I/O permission map",
    "msrpm_base_pa": "L1's MSR permission map",
    "tsc_offset": "L2's TSC offset, set by L1",
    "asid": "L2's ASID in L1's view, never 0",
    "tlb_ctl": "TLB flush requested at VMRUN",
    "erap_ctl": "return address predictor control",
    "int_ctl": "virtual interrupt control",
    "int_vector": "vector of the virtual interrupt",
    "int_state": "interrupt shadow",
    "exit_code": "stale: the exit before the current VMRUN",
    "exit_info_1": "stale: EXITINFO1 of that exit",
    "exit_info_2": "stale: EXITINFO2 of that exit",
    "exit_int_info": "stale: event that was being delivered then",
    "exit_int_info_err": "stale: its error code",
    "nested_ctl": "nested paging and encryption (misc_ctl since 7.2)",
    "avic_vapic_bar": "not migrated: AVIC APIC BAR",
    "ghcb_gpa": "not migrated: GHCB address",
    "event_inj": "event that VMRUN injects into L2",
    "event_inj_err": "its error code",
    "nested_cr3": "root of L1's nested page tables",
    "virt_ext": "LBR and VMLOAD virtualisation (misc_ctl2 since 7.2)",
    "clean": "not migrated: VMCB clean bits",
    "next_rip": "RIP after the intercepted instruction",
    "insn_len": "not migrated: instruction bytes fetched",
    "insn_bytes": "not migrated: instruction bytes",
    "avic_backing_page": "not migrated: AVIC backing page",
    "avic_logical_id": "not migrated: AVIC logical table",
    "avic_physical_id": "not migrated: AVIC physical table",
    "vmsa_pa": "not migrated: SEV-ES save area",
    "bus_lock_counter": "not migrated: bus lock threshold",
    "allowed_sev_features": "not migrated: SEV features allowed",
    "guest_sev_features": "not migrated: SEV features in use",
    "hv_enlightenments": "not migrated: Hyper-V enlightenments",
}

SAVE = {
    "es": "L1's ES",
    "cs": "L1's CS",
    "ss": "L1's SS",
    "ds": "L1's DS",
    "fs": "not L1's: in the VMLOAD group, shared with L2",
    "gs": "not L1's: in the VMLOAD group, shared with L2",
    "gdtr": "L1's GDT",
    "ldtr": "not L1's: in the VMLOAD group, shared with L2",
    "idtr": "L1's IDT",
    "tr": "not L1's: in the VMLOAD group, shared with L2",
    "vmpl0_ssp": "SEV-ES only",
    "vmpl1_ssp": "SEV-ES only",
    "vmpl2_ssp": "SEV-ES only",
    "vmpl3_ssp": "SEV-ES only",
    "u_cet": "SEV-ES only",
    "vmpl": "SEV-SNP only",
    "cpl": "not used: L1 is at CPL 0 at VMRUN",
    "efer": "L1's EFER, SVME always set",
    "xss": "SEV-ES only",
    "cr4": "L1's CR4",
    "cr3": "L1's page tables",
    "cr0": "L1's CR0",
    "dr7": "not used: a #VMEXIT sets DR7 to 0x400",
    "dr6": "not used: KVM keeps DR6 elsewhere",
    "rflags": "L1's flags",
    "rip": "where L1 continues: after its VMRUN",
    "dr0": "SEV-ES only",
    "dr1": "SEV-ES only",
    "dr2": "SEV-ES only",
    "dr3": "SEV-ES only",
    "dr0_addr_mask": "SEV-ES only",
    "dr1_addr_mask": "SEV-ES only",
    "dr2_addr_mask": "SEV-ES only",
    "dr3_addr_mask": "SEV-ES only",
    "instr_retired_ctr": "PMU virtualisation",
    "perf_ctr_global_sts": "PMU virtualisation",
    "perf_ctr_global_ctl": "PMU virtualisation",
    "rsp": "L1's stack",
    "s_cet": "L1's supervisor shadow stack control (7.x)",
    "ssp": "L1's shadow stack (7.x)",
    "isst_addr": "L1's interrupt shadow stack table (7.x)",
    "rax": "L1's RAX: the address of vmcb12",
    "star": "not L1's: in the VMLOAD group, shared with L2",
    "lstar": "not L1's: in the VMLOAD group, shared with L2",
    "cstar": "not L1's: in the VMLOAD group, shared with L2",
    "sfmask": "not L1's: in the VMLOAD group, shared with L2",
    "kernel_gs_base": "not L1's: in the VMLOAD group, shared with L2",
    "sysenter_cs": "not L1's: in the VMLOAD group, shared with L2",
    "sysenter_esp": "not L1's: in the VMLOAD group, shared with L2",
    "sysenter_eip": "not L1's: in the VMLOAD group, shared with L2",
    "cr2": "not used",
    "g_pat": "not used: L1's PAT travels as an MSR",
    "dbgctl": "L1's DEBUGCTL (7.x, with LBR virtualisation)",
    "br_from": "L1's last branch (7.x, with LBR virtualisation)",
    "br_to": "L1's last branch (7.x, with LBR virtualisation)",
    "last_excp_from": "L1's last exception (7.x, with LBR virtualisation)",
    "last_excp_to": "L1's last exception (7.x, with LBR virtualisation)",
    "spec_ctrl": "not used",
}


def words(area: str, name: str) -> str:
    """Describe a field of ``header``, ``control`` or ``save``; empty if it is reserved."""
    tables = {"header": HEADER, "control": CONTROL, "save": SAVE}
    return tables[area].get(name, "")
