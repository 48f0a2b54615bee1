"""The layout of the ``cpu`` section of x86, as rows of :mod:`~qemu_svm.stream.vmstate.builtin`.

The only x86 knowledge in :mod:`qemu_svm.stream`.

Source: QEMU ``target/i386/machine.c`` (``vmstate_x86_cpu`` and its subsections),
5.2 to 10.0; the tables of a 11.1 binary.
"""

from __future__ import annotations

from collections.abc import Mapping

STRUCTURES: Mapping[str, tuple[str, str]] = {
    "FPREG": ("fpreg", "tmp:FPTMP"),
    "FPTMP": ("fpreg_tmp", "tmp_mant:uint64 tmp_exp:uint16"),
    "SEGMENT": ("segment", "selector:uint32 base:{long} limit:uint32 flags:uint32"),
    "XMM": ("xmm_reg", "_q_ZMMReg[0]:uint64 _q_ZMMReg[1]:uint64"),
    "YMMH": ("ymmh_reg", "_q_ZMMReg[2]:uint64 _q_ZMMReg[3]:uint64"),
    "ZMMH": (
        "zmmh_reg",
        "_q_ZMMReg[4]:uint64 _q_ZMMReg[5]:uint64 _q_ZMMReg[6]:uint64 _q_ZMMReg[7]:uint64",
    ),
    "ZMM": ("hi16_zmm_reg", " ".join(f"_q_ZMMReg[{number}]:uint64" for number in range(8))),
    "BND": ("bnd_regs", "lb:uint64 ub:uint64"),
    "MTRR": ("mtrr_var", "base:uint64 mask:uint64"),
    "LBR": ("lbr_records_var", "from:uint64 to:uint64 info:uint64"),
    "NESTED": ("cpu/kvm_nested_state", "flags:uint16 format:uint16 size:uint32"),
}
"""Name in QEMU and fields of each structure; ``{long}`` as in :data:`CPU`."""

CPU = """
    env.regs:{long}*{count} env.eip:{long} env.eflags:{long} env.hflags:uint32
    env.fpuc:uint16 env.fpus_vmstate:uint16 env.fptag_vmstate:uint16
    env.fpregs_format_vmstate:uint16 env.fpregs:FPREG*8 env.segs:SEGMENT*6
    env.ldt:SEGMENT env.tr:SEGMENT env.gdt:SEGMENT env.idt:SEGMENT
    env.sysenter_cs:uint32 env.sysenter_esp:{long} env.sysenter_eip:{long}
    env.cr[0]:{long} env.cr[2]:{long} env.cr[3]:{long} env.cr[4]:{long} env.dr:{long}*8
    env.a20_mask:int32 env.mxcsr:uint32 env.xmm_regs[0]:XMM*{count} {efer}
    env.smbase:uint32 env.pat:uint64 env.hflags2:uint32 env.vm_hsave:uint64
    env.vm_vmcb:uint64 env.tsc_offset:uint64 env.intercept:uint64
    env.intercept_cr_read:uint16 env.intercept_cr_write:uint16
    env.intercept_dr_read:uint16 env.intercept_dr_write:uint16
    env.intercept_exceptions:uint32 env.v_tpr:uint8 env.mtrr_fixed:uint64*11
    env.mtrr_deftype:uint64 env.mtrr_var:MTRR*8 env.interrupt_injected:int32
    env.mp_state:uint32 env.tsc:uint64 env.exception_nr:int32 env.soft_interrupt:uint8
    env.nmi_injected:uint8 env.nmi_pending:uint8 env.has_error_code:uint8
    env.sipi_vector:uint32 env.mcg_cap:uint64 env.mcg_status:uint64 env.mcg_ctl:uint64
    env.mce_banks:uint64*40 env.tsc_aux:uint64 env.system_time_msr:uint64
    env.wall_clock_msr:uint64
"""
"""Fields of version 11.  A 64-bit QEMU writes uint64 for ``{long}``, 16 for ``{count}``
and :data:`EFER` for ``{efer}``; a 32-bit one uint32, 8 and nothing."""

CPU_12 = " env.xcr0:uint64 env.xstate_bv:uint64 env.xmm_regs[1]:YMMH*{count}"
"""Fields that version 12 adds."""

EFER = (
    "env.efer:uint64 env.star:uint64 env.lstar:uint64 env.cstar:uint64 env.fmask:uint64 "
    "env.kernelgsbase:uint64"
)

CPU_SUBSECTIONS = """
    cpu/exception_info env.exception_pending:uint8 env.exception_injected:uint8
        env.exception_has_payload:uint8 env.exception_payload:uint64
    cpu/error_code env.error_code:int32
    cpu/async_pf_msr env.async_pf_en_msr:uint64
    cpu/async_pf_int_msr env.async_pf_int_msr:uint64
    cpu/async_pv_eoi_msr env.pv_eoi_en_msr:uint64
    cpu/steal_time_msr env.steal_time_msr:uint64
    cpu/poll_control_msr env.poll_control_msr:uint64
    cpu/fpop_ip_dp env.fpop:uint16 env.fpip:uint64 env.fpdp:uint64
    cpu/msr_tsc_adjust env.tsc_adjust:uint64
    cpu/msr_tscdeadline env.tsc_deadline:uint64
    cpu/msr_ia32_misc_enable env.msr_ia32_misc_enable:uint64
    cpu/msr_ia32_feature_control env.msr_ia32_feature_control:uint64
    cpu/msr_architectural_pmu env.msr_fixed_ctr_ctrl:uint64 env.msr_global_ctrl:uint64
        env.msr_global_status:uint64 env.msr_global_ovf_ctrl:uint64
        env.msr_fixed_counters:uint64*3 env.msr_gp_counters:uint64*18 env.msr_gp_evtsel:uint64*18
    cpu/mpx env.bnd_regs:BND*4 env.bndcs_regs.cfgu:uint64 env.bndcs_regs.sts:uint64
        env.msr_bndcfgs:uint64
    cpu/msr_hyperv_hypercall env.msr_hv_guest_os_id:uint64 env.msr_hv_hypercall:uint64
    cpu/msr_hyperv_vapic env.msr_hv_vapic:uint64
    cpu/msr_hyperv_time env.msr_hv_tsc:uint64
    cpu/msr_hyperv_crash env.msr_hv_crash_params:uint64*5
    cpu/msr_hyperv_runtime env.msr_hv_runtime:uint64
    cpu/msr_hyperv_synic env.msr_hv_synic_control:uint64 env.msr_hv_synic_evt_page:uint64
        env.msr_hv_synic_msg_page:uint64 env.msr_hv_synic_sint:uint64*16
    cpu/msr_hyperv_stimer env.msr_hv_stimer_config:uint64*4 env.msr_hv_stimer_count:uint64*4
    cpu/msr_hyperv_reenlightenment env.msr_hv_reenlightenment_control:uint64
        env.msr_hv_tsc_emulation_control:uint64 env.msr_hv_tsc_emulation_status:uint64
    cpu/avx512 env.opmask_regs:uint64*8 env.xmm_regs[0]:ZMMH*16 env.xmm_regs[1]:ZMM*16
    cpu/xss env.xss:uint64
    cpu/umwait env.umwait:uint32
    cpu/tsc_khz env.tsc_khz:int64
    cpu/msr_smi_count env.msr_smi_count:uint64
    cpu/pkru env.pkru:uint32
    cpu/pkrs env.pkrs:uint32
    cpu/spec_ctrl env.spec_ctrl:uint64
    cpu/amd_tsc_scale_msr env.amd_tsc_scale_msr:uint64
    cpu/mcg_ext_ctl env.mcg_ext_ctl:uint64
    cpu/intel_pt env.msr_rtit_ctrl:uint64 env.msr_rtit_status:uint64
        env.msr_rtit_output_base:uint64 env.msr_rtit_output_mask:uint64
        env.msr_rtit_cr3_match:uint64 env.msr_rtit_addrs:uint64*8
    cpu/virt_ssbd env.virt_ssbd:uint64
    cpu/svn_npt env.nested_cr3:uint64 env.nested_pg_mode:uint32
    cpu/svm_guest env.int_ctl:uint32
    cpu/efer32 env.efer:uint64
    cpu/nested_state env.nested_state:NESTED
    cpu/xen_vcpu env.xen_vcpu_info_gpa:uint64 env.xen_vcpu_info_default_gpa:uint64
        env.xen_vcpu_time_info_gpa:uint64 env.xen_vcpu_runstate_gpa:uint64
        env.xen_vcpu_callback_vector:uint8 env.xen_virq:uint16*24
        env.xen_singleshot_timer_ns:uint64 env.xen_periodic_timer_period:uint64
    cpu/msr_tsx_ctrl env.tsx_ctrl:uint32
    cpu/intel_sgx env.msr_ia32_sgxlepubkeyhash:uint64*4
    cpu/pdptrs env.pdptrs:uint64*4
    cpu/msr_xfd env.msr_xfd:uint64 env.msr_xfd_err:uint64
    cpu/msr_hwcr env.msr_hwcr:uint64
    cpu/fred env.fred_rsp0:uint64 env.fred_rsp1:uint64 env.fred_rsp2:uint64 env.fred_rsp3:uint64
        env.fred_stklvls:uint64 env.fred_ssp1:uint64 env.fred_ssp2:uint64 env.fred_ssp3:uint64
        env.fred_config:uint64
    cpu/intel_amx_xtile env.xtilecfg:uint8*64 env.xtiledata:uint8*8192
    cpu/arch_lbr env.msr_lbr_ctl:uint64 env.msr_lbr_depth:uint64 env.lbr_records:LBR*32
    cpu/triple_fault env.triple_fault_pending:uint8
    cpu/msr_pl0_ssp env.pl0_ssp:uint64
    cpu/cet env.u_cet:uint64 env.s_cet:uint64
    cpu/apx env.regs:uint64*16
"""
_NESTED_SUBSECTIONS = """
    cpu/kvm_nested_state/vmx hdr.vmx.vmxon_pa:uint64 hdr.vmx.vmcs12_pa:uint64
        hdr.vmx.smm.flags:uint16
    cpu/kvm_nested_state/svm hdr.svm.vmcb_pa:uint64 data.svm[0].vmcb12:uint8*4096
"""
_VMX_SUBSECTIONS = """
    cpu/kvm_nested_state/vmx/vmcs12 data.vmx[0].vmcs12:uint8*4096
    cpu/kvm_nested_state/vmx/shadow_vmcs12 data.vmx[0].shadow_vmcs12:uint8*4096
"""
_CET_SUBSECTIONS = """
    cpu/cet_shstk env.pl1_ssp:uint64 env.pl2_ssp:uint64 env.pl3_ssp:uint64
        env.int_ssp_table:uint64 env.guest_ssp:uint64
"""
SUBSECTIONS_IN: Mapping[str, str] = {
    "cpu/kvm_nested_state": _NESTED_SUBSECTIONS,
    "cpu/kvm_nested_state/vmx": _VMX_SUBSECTIONS,
    "cpu/cet": _CET_SUBSECTIONS,
}
"""Subsections of structures and of other subsections."""
