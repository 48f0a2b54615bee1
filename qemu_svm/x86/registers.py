"""Names of the bits in x86 registers.

Source: AMD64 Architecture Programmer's Manual volume 2, 3.1 (system
registers), 13.1 (debug registers); Linux ``arch/x86/include/uapi/asm/processor-flags.h``.
"""

from __future__ import annotations

from qemu_svm.x86.bits import Bits

EFER = Bits(
    {
        0: "SCE",
        8: "LME",
        10: "LMA",
        11: "NX",
        12: "SVME",
        13: "LMSLE",
        14: "FFXSR",
        15: "TCE",
        17: "MCOMMIT",
        18: "INTWB",
        20: "UAIE",
        21: "AIBRSE",
    }
)

CR0 = Bits(
    {
        0: "PE",
        1: "MP",
        2: "EM",
        3: "TS",
        4: "ET",
        5: "NE",
        16: "WP",
        18: "AM",
        29: "NW",
        30: "CD",
        31: "PG",
    }
)

CR4 = Bits(
    {
        0: "VME",
        1: "PVI",
        2: "TSD",
        3: "DE",
        4: "PSE",
        5: "PAE",
        6: "MCE",
        7: "PGE",
        8: "PCE",
        9: "OSFXSR",
        10: "OSXMMEXCPT",
        11: "UMIP",
        12: "LA57",
        13: "VMXE",
        14: "SMXE",
        16: "FSGSBASE",
        17: "PCIDE",
        18: "OSXSAVE",
        20: "SMEP",
        21: "SMAP",
        22: "PKE",
        23: "CET",
        24: "PKS",
        25: "UINTR",
        28: "LAM_SUP",
        32: "FRED",
    }
)

RFLAGS = Bits(
    {
        0: "CF",
        1: "1",
        2: "PF",
        4: "AF",
        6: "ZF",
        7: "SF",
        8: "TF",
        9: "IF",
        10: "DF",
        11: "OF",
        14: "NT",
        16: "RF",
        17: "VM",
        18: "AC",
        19: "VIF",
        20: "VIP",
        21: "ID",
    },
    ignore=3 << 12,
)
"""Without IOPL (bits 12 and 13)."""

DR6 = Bits(
    {0: "B0", 1: "B1", 2: "B2", 3: "B3", 13: "BD", 14: "BS", 15: "BT"},
    ignore=0xFFFF0FF0,
)
"""Without the bits that are normally set (among them BLD and RTM)."""

DR7 = Bits(
    {
        0: "L0",
        1: "G0",
        2: "L1",
        3: "G1",
        4: "L2",
        5: "G2",
        6: "L3",
        7: "G3",
        8: "LE",
        9: "GE",
        13: "GD",
    },
    ignore=0xFFFF0400,
)
"""Without the conditions and lengths of the breakpoints (bits 16 to 31)."""

NAMED: dict[str, Bits] = {
    "efer": EFER,
    "cr0": CR0,
    "cr4": CR4,
    "rflags": RFLAGS,
    "dr6": DR6,
    "dr7": DR7,
}
"""Tables by the registers' names in this package."""


def canonical(address: int) -> int:
    """Return the address with bit 47 copied to all bits above it (4-level paging)."""
    low = address & (1 << 48) - 1
    return low | 0xFFFF << 48 if low >> 47 else low


_PAGING = CR0.mask("PG")
_PAE = CR4.mask("PAE")
_LONG = EFER.mask("LMA")


def uses_pae(cr0: int, cr4: int, efer: int) -> bool:
    """Whether paging is on in the format of PAE, with four PDPTEs (5.2.3, 5.3)."""
    return bool(cr0 & _PAGING and cr4 & _PAE and not efer & _LONG)
