"""The layout of the nested state: the VMCB and KVM's header.

Names of bits are in :mod:`qemu_svm.nested.bits`, of exits in
:mod:`qemu_svm.nested.exit_codes`, words in :mod:`qemu_svm.nested.descriptions`.
The VMCB is little-endian as in memory; QEMU re-encodes the header in
big-endian and sends the VMCB unchanged.

Field names are Linux'; where 7.2 renamed one, the older name is kept.  Fields
that only the processor manual has (PMU state) have its names.

Source: Linux ``arch/x86/include/asm/svm.h`` and
``arch/x86/include/uapi/asm/kvm.h`` (5.10, 6.1, 6.12, 7.2); AMD64 APM volume 2,
appendix B; QEMU ``target/i386/machine.c`` (``vmstate_kvm_nested_state``).
"""

from __future__ import annotations

from construct import (
    Bytes,
    Int8ul,
    Int16ub,
    Int16ul,
    Int32ub,
    Int32ul,
    Int64ub,
    Int64ul,
    Struct,
)

from qemu_svm.nested.image import image

CONTROL_OFFSET = 0x000
CONTROL_SIZE = 0x400
SAVE_OFFSET = 0x400
SAVE_SIZE = 0xC00
VMCB_SIZE = 0x1000

SEGMENT = Struct(
    "selector" / Int16ul,
    "attrib" / Int16ul,
    "limit" / Int32ul,
    "base" / Int64ul,
)
"""A segment or descriptor-table register in the save area."""

HV_ENLIGHTENMENTS = Struct(
    "control" / Int32ul,
    "vp_id" / Int32ul,
    "vm_id" / Int64ul,
    "partition_assist_page" / Int64ul,
    "reserved" / Bytes(8),
)
"""Hyper-V's use of the software-reserved end of the control area."""

CONTROL = image(
    CONTROL_SIZE,
    (0x000, "intercepts", Int32ul[6]),
    (0x03C, "pause_filter_thresh", Int16ul),
    (0x03E, "pause_filter_count", Int16ul),
    (0x040, "iopm_base_pa", Int64ul),
    (0x048, "msrpm_base_pa", Int64ul),
    (0x050, "tsc_offset", Int64ul),
    (0x058, "asid", Int32ul),
    (0x05C, "tlb_ctl", Int8ul),
    (0x05D, "erap_ctl", Int8ul),
    (0x060, "int_ctl", Int32ul),
    (0x064, "int_vector", Int32ul),
    (0x068, "int_state", Int32ul),
    (0x070, "exit_code", Int64ul),
    (0x078, "exit_info_1", Int64ul),
    (0x080, "exit_info_2", Int64ul),
    (0x088, "exit_int_info", Int32ul),
    (0x08C, "exit_int_info_err", Int32ul),
    (0x090, "nested_ctl", Int64ul),
    (0x098, "avic_vapic_bar", Int64ul),
    (0x0A0, "ghcb_gpa", Int64ul),
    (0x0A8, "event_inj", Int32ul),
    (0x0AC, "event_inj_err", Int32ul),
    (0x0B0, "nested_cr3", Int64ul),
    (0x0B8, "virt_ext", Int64ul),
    (0x0C0, "clean", Int32ul),
    (0x0C8, "next_rip", Int64ul),
    (0x0D0, "insn_len", Int8ul),
    (0x0D1, "insn_bytes", Bytes(15)),
    (0x0E0, "avic_backing_page", Int64ul),
    (0x0F0, "avic_logical_id", Int64ul),
    (0x0F8, "avic_physical_id", Int64ul),
    (0x108, "vmsa_pa", Int64ul),
    (0x120, "bus_lock_counter", Int16ul),
    (0x138, "allowed_sev_features", Int64ul),
    (0x140, "guest_sev_features", Int64ul),
    (0x3E0, "hv_enlightenments", HV_ENLIGHTENMENTS),
)
"""``struct vmcb_control_area``; offsets in the VMCB."""

SAVE = image(
    SAVE_SIZE,
    (0x000, "es", SEGMENT),
    (0x010, "cs", SEGMENT),
    (0x020, "ss", SEGMENT),
    (0x030, "ds", SEGMENT),
    (0x040, "fs", SEGMENT),
    (0x050, "gs", SEGMENT),
    (0x060, "gdtr", SEGMENT),
    (0x070, "ldtr", SEGMENT),
    (0x080, "idtr", SEGMENT),
    (0x090, "tr", SEGMENT),
    (0x0A0, "vmpl0_ssp", Int64ul),
    (0x0A8, "vmpl1_ssp", Int64ul),
    (0x0B0, "vmpl2_ssp", Int64ul),
    (0x0B8, "vmpl3_ssp", Int64ul),
    (0x0C0, "u_cet", Int64ul),
    (0x0CA, "vmpl", Int8ul),
    (0x0CB, "cpl", Int8ul),
    (0x0D0, "efer", Int64ul),
    (0x140, "xss", Int64ul),
    (0x148, "cr4", Int64ul),
    (0x150, "cr3", Int64ul),
    (0x158, "cr0", Int64ul),
    (0x160, "dr7", Int64ul),
    (0x168, "dr6", Int64ul),
    (0x170, "rflags", Int64ul),
    (0x178, "rip", Int64ul),
    (0x180, "dr0", Int64ul),
    (0x188, "dr1", Int64ul),
    (0x190, "dr2", Int64ul),
    (0x198, "dr3", Int64ul),
    (0x1A0, "dr0_addr_mask", Int64ul),
    (0x1A8, "dr1_addr_mask", Int64ul),
    (0x1B0, "dr2_addr_mask", Int64ul),
    (0x1B8, "dr3_addr_mask", Int64ul),
    (0x1C0, "instr_retired_ctr", Int64ul),
    (0x1C8, "perf_ctr_global_sts", Int64ul),
    (0x1D0, "perf_ctr_global_ctl", Int64ul),
    (0x1D8, "rsp", Int64ul),
    (0x1E0, "s_cet", Int64ul),
    (0x1E8, "ssp", Int64ul),
    (0x1F0, "isst_addr", Int64ul),
    (0x1F8, "rax", Int64ul),
    (0x200, "star", Int64ul),
    (0x208, "lstar", Int64ul),
    (0x210, "cstar", Int64ul),
    (0x218, "sfmask", Int64ul),
    (0x220, "kernel_gs_base", Int64ul),
    (0x228, "sysenter_cs", Int64ul),
    (0x230, "sysenter_esp", Int64ul),
    (0x238, "sysenter_eip", Int64ul),
    (0x240, "cr2", Int64ul),
    (0x268, "g_pat", Int64ul),
    (0x270, "dbgctl", Int64ul),
    (0x278, "br_from", Int64ul),
    (0x280, "br_to", Int64ul),
    (0x288, "last_excp_from", Int64ul),
    (0x290, "last_excp_to", Int64ul),
    (0x2E0, "spec_ctrl", Int64ul),
)
"""``struct vmcb_save_area``; offsets from its start at 0x400."""

VMCB = image(
    VMCB_SIZE,
    (CONTROL_OFFSET, "control", CONTROL.layout),
    (SAVE_OFFSET, "save", SAVE.layout),
)
"""The whole page: what KVM calls ``vmcb12`` in the nested state."""

SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs", "gdtr", "ldtr", "idtr", "tr")

UAPI_HEADER_SIZE = 0x80
UAPI_HEADER = image(
    UAPI_HEADER_SIZE,
    (0x00, "flags", Int16ul),
    (0x02, "format", Int16ul),
    (0x04, "size", Int32ul),
    (0x08, "vmcb_pa", Int64ul),
    (0x10, "gpat", Int64ul),
)
"""``struct kvm_nested_state`` with ``hdr.svm``, as passed to KVM_SET_NESTED_STATE."""

NESTED_STATE_SIZE = UAPI_HEADER_SIZE + VMCB_SIZE
"""Bytes of the nested state in guest mode."""

WIRE_HEADER = Struct("flags" / Int16ub, "format" / Int16ub, "size" / Int32ub)
"""The same header's first fields in a QEMU stream."""

WIRE_SVM = Struct("vmcb_pa" / Int64ub, "vmcb12" / Bytes(VMCB_SIZE))
"""Content of the subsection ``cpu/kvm_nested_state/svm``."""

FORMAT_VMX = 0
FORMAT_SVM = 1
