"""The fields of vmcb12 that another vCPU of L1 can change while KVM executes VMRUN.

KVM reads vmcb12 from memory.  A field that is read once is checked and used as one value;
one that is read twice can be another value when it is used (CVE-2021-29657).
"""

from __future__ import annotations

SAVE = (
    *("efer", "cr0", "cr2", "cr3", "cr4", "dr6", "dr7", "rflags", "rip", "rsp", "rax", "cpl"),
)  # fmt: skip
"""Of the save area."""

CONTROL = (
    *("intercepts", "iopm_base_pa", "msrpm_base_pa", "tsc_offset", "asid", "tlb_ctl", "int_ctl"),
    *("int_vector", "int_state", "nested_ctl", "event_inj", "event_inj_err", "nested_cr3"),
    *("virt_ext", "pause_filter_count", "pause_filter_thresh", "next_rip"),
)
"""Of the control area; ``intercepts`` is one number, bit 128 of which is VMRUN."""

FIELDS = (*SAVE, *CONTROL)
"""All of them."""

CHECKED = frozenset(
    {
        *("intercepts", "iopm_base_pa", "msrpm_base_pa", "asid", "tlb_ctl", "int_ctl"),
        *("nested_ctl", "event_inj", "nested_cr3"),
    }
)
"""Fields of the control area that some kernel checks."""
