"""Numbers of MSRs by their names in this package.

Source: AMD64 APM volume 2, appendix A; Linux ``arch/x86/include/asm/msr-index.h``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

NUMBERS: Mapping[str, int] = MappingProxyType(
    {
        "tsc": 0x10,
        "sysenter_cs": 0x174,
        "sysenter_esp": 0x175,
        "sysenter_eip": 0x176,
        "debugctl": 0x1D9,
        "pat": 0x277,
        "efer": 0xC000_0080,
        "star": 0xC000_0081,
        "lstar": 0xC000_0082,
        "cstar": 0xC000_0083,
        "sfmask": 0xC000_0084,
        "fs_base": 0xC000_0100,
        "gs_base": 0xC000_0101,
        "kernel_gs_base": 0xC000_0102,
        "tsc_aux": 0xC000_0103,
        "tsc_ratio": 0xC000_0104,
        "vm_cr": 0xC001_0114,
        "vm_hsave_pa": 0xC001_0117,
    }
)


def pat_valid(pat: int) -> bool:
    """``kvm_pat_valid``: every entry is a memory type that exists."""
    kinds = [pat >> shift & 0xFF for shift in range(0, 64, 8)]
    return all(kind in (0, 1, 4, 5, 6, 7) for kind in kinds)
