"""The values that the guests load into L1's and L2's registers.

One table serves both sides: :mod:`qemu_svm.lab.guests.build` passes it to the
assembler as symbols (``L1_CR3``, ``L2_CS_LIMIT``), and
:mod:`qemu_svm.lab.guests.expect` compares captures with it.  No value of L1 is
also one of L2.

Memory: L1 sees its own physical memory; L2's linear address A is L1's physical
address ``WORLD + A`` in every guest, through L2's page tables, through nested
paging or, without paging, through segment bases.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType

IMAGE = 0x100000
"""Address at which the image is loaded and for which it is linked."""

WORLD = 0x400000
"""L1's physical address of L2's linear address 0."""

DATA = 0x110000
"""Start of the 64 KiB of data of L1, and of L2 in its own addresses."""

ADDRESSES: Mapping[str, int] = MappingProxyType(
    {
        "IMAGE": IMAGE,
        "WORLD": WORLD,
        "DATA": DATA,
        "L1_EXITS": DATA + 0x10,
        "L1_STOPPED": DATA + 0x18,
        "L1_STOPS": DATA + 0x1C,
        "L1_COUNT": DATA + 0x20,
        "SMM_COUNT": DATA + 0x28,
        "VMCB12": DATA + 0x1000,
        "L1_HOST": DATA + 0x2000,
        "VM_HSAVE_PA": DATA + 0x3000,
        "L1_PML4": DATA + 0x4000,
        "L1_PDPT": DATA + 0x5000,
        "L1_PD": DATA + 0x6000,
        "NESTED_CR3": DATA + 0x7000,
        "NPT_PDPT": DATA + 0x8000,
        "NPT_PD": DATA + 0x9000,
        "MSRPM": DATA + 0xA000,
        "NPT_PD_DEVICE": DATA + 0xC000,
        "AP_RSP": DATA + 0xFE00,
        "L1_PD_APIC": DATA + 0xE000,
        "IOPM": DATA + 0x10000,
        "L2_COUNT": DATA + 0x10,
        "L2_EVENTS": DATA + 0x18,
        "L2_MSR": DATA + 0x20,
        "L2_GDT_BASE": DATA + 0x8000,
        "L2_IDT_BASE": DATA + 0x9000,
        "L2_PML4": DATA + 0xA000,
        "L2_PDPT": DATA + 0xB000,
        "L2_PD": DATA + 0xC000,
        "L2_PD_DEVICE": DATA + 0xE000,
    }
)
"""L1's addresses are physical, L2's (``L2_…``) are its linear addresses."""

CONSTANTS: Mapping[str, int] = MappingProxyType(
    {
        "EXIT_CPUID": 0x72,
        "EXIT_MSR": 0x7C,
        "SPIN": 0x10000,
        "ASID": 7,
        "TSC_OFFSET": 0x12_3456_7000,
        "INTERCEPTS3": 1 << 18 | 1 << 31,  # CPUID, SHUTDOWN
        "INTERCEPTS4": 1,  # VMRUN
        "NESTED_CTL": 0,
        "DR0": 0xD0D0,
        "GIF": 1,
        "VECTOR": 0x21,
        "EVENT": 1 << 31 | 0x21,  # valid, external interrupt
        "MSR_ANSWER": 0x1111_0082,
        "SMBASE": 0xA0000,
        "SMM_SPIN": 0x400000,
        "TRAMPOLINE": 0x8000,
        "DEVICE": 0xFEC00000,  # the I/O APIC
    }
)

_DATA, _CODE64, _CODE32, _LDT, _TSS = 0xC93, 0xA9B, 0xC9B, 0x082, 0x08B
_ALL = 0xFFFFFFFF


def _segment(
    name: str, selector: int, attrib: int, limit: int = _ALL, base: int = 0
) -> dict[str, int]:
    parts = {"selector": selector, "attrib": attrib, "limit": limit, "base": base}
    return {f"{name}.{part}": value for part, value in parts.items()}


L1: Mapping[str, int] = MappingProxyType(
    {
        "rax": 0x1111_000A,
        "rbx": 0x1111_000B,
        "rcx": 0x1111_000C,
        "rdx": 0x1111_000D,
        "rbp": 0x1111_00B0,
        "rsi": 0x1111_0051,
        "rdi": 0x1111_00D1,
        **{f"r{number}": 0x1111_1000 + number for number in range(8, 16)},
        "rsp": DATA + 0xFF00,
        "rflags": 0x40002,  # AC
        "efer": 0x1D01,  # SVME NX LMA LME SCE
        "cr0": 0x80010011,  # PG WP ET PE
        "cr2": 0x1111_C200,
        "cr3": ADDRESSES["L1_PML4"],
        "cr4": 0x000A0,  # PGE PAE
        "pat": 0x0007_0406_0001_0406,
        **_segment("cs", 0x08, _CODE64),
        **_segment("ds", 0x10, _DATA),
        **_segment("es", 0x10, _DATA),
        **_segment("ss", 0x10, _DATA),
        **_segment("fs", 0x11A0, _DATA, base=0x1111_F500),
        **_segment("gs", 0x11A8, _DATA, base=0x1111_6500),
        **_segment("ldt", 0x11B0, _LDT, limit=0x11F, base=0x1111_1D00),
        **_segment("tr", 0x11C0, _TSS, limit=0x167, base=0x1111_7500),
        "star": 0x0011_0022_1111_1111,
        "lstar": 0xFFFF_FFFF_1111_1000,
        "cstar": 0xFFFF_FFFF_1111_C000,
        "sfmask": 0x1100,
        "kernel_gs_base": 0xFFFF_8811_1111_0000,
        "sysenter_cs": 0x1110,
        "sysenter_esp": 0x1111_E590,
        "sysenter_eip": 0x1111_E1F0,
    }
)
"""L1's registers by the names of :class:`qemu_svm.machine.Vcpu`."""

VMLOAD_GROUP = (
    *(f"{name}.{part}" for name in ("fs", "gs", "ldt", "tr")
      for part in ("selector", "attrib", "limit", "base")),
    "star", "lstar", "cstar", "sfmask", "kernel_gs_base",
    "sysenter_cs", "sysenter_esp", "sysenter_eip",
)  # fmt: skip
"""Registers that VMRUN does not load, and VMLOAD and VMSAVE do."""

_L2: Mapping[str, int] = MappingProxyType(
    {
        "rax": 0x2222_000A,
        "rbx": 0x2222_000B,
        "rdx": 0x2222_000D,
        "rbp": 0x2222_00B0,
        "rsi": 0x2222_0051,
        "rdi": 0x2222_00D1,
        **{f"r{number}": 0x2222_2000 + number for number in range(8, 16)},
        "rsp": DATA + 0xEF00,
        "rflags": 0x200002,  # ID
        "efer": 0x1500,  # SVME LMA LME
        "cr0": 0x80000031,  # PG NE ET PE
        "cr2": 0x2222_C200,
        "cr4": 0x00220,  # OSFXSR PAE
        "dr6": 0xFFFF0FF1,
        "dr7": 0x700,  # LE GE
        "pat": 0x0001_0406_0007_0406,
        **_segment("es", 0x38, _DATA, limit=0xEFFFFFFF, base=0x2222_E500),
        **_segment("cs", 0x28, _CODE64),
        **_segment("ss", 0x40, _DATA, limit=0xDFFFFFFF, base=0x2222_5500),
        **_segment("ds", 0x30, _DATA, limit=0xCFFFFFFF, base=0x2222_D500),
        **_segment("fs", 0x22A0, _DATA, limit=0xBFFFFFFF, base=0x2222_F500),
        **_segment("gs", 0x22A8, _DATA, limit=0xAFFFFFFF, base=0x2222_6500),
        **_segment("ldt", 0x22B0, _LDT, limit=0x22F, base=0x2222_1D00),
        **_segment("tr", 0x22C0, _TSS, limit=0x267, base=0x2222_7500),
        "gdt.limit": 0x7F,
        "gdt.base": ADDRESSES["L2_GDT_BASE"],
        "idt.limit": 0x3FF,
        "idt.base": ADDRESSES["L2_IDT_BASE"],
        "star": 0x0033_0044_2222_2222,
        "lstar": 0xFFFF_FFFF_2222_1000,
        "cstar": 0xFFFF_FFFF_2222_C000,
        "sfmask": 0x2200,
        "kernel_gs_base": 0xFFFF_8822_2222_0000,
        "sysenter_cs": 0x2220,
        "sysenter_esp": 0x2222_E590,
        "sysenter_eip": 0x2222_E1F0,
    }
)


class Mode(Enum):
    """Processor modes of L2."""

    LONG = "long"
    PAE = "pae"
    PROTECTED = "protected"


def physical(*, nested_paging: bool) -> int:
    """Return L2's physical address of its linear address 0, as in its page tables."""
    return 0 if nested_paging else WORLD


def l2(mode: Mode, *, nested_paging: bool) -> dict[str, int]:
    """Return L2's registers by name."""
    values = dict(_L2)
    base = physical(nested_paging=nested_paging)
    values["cr3"] = base + ADDRESSES["L2_PML4"]
    if mode is Mode.LONG:
        return values
    for number in range(8, 16):
        del values[f"r{number}"]
    values.update(efer=0x1000, **_segment("cs", 0x28, _CODE32))
    if mode is Mode.PAE:
        values["cr3"] = base + ADDRESSES["L2_PDPT"]
        flat = 0
    else:
        # Without paging CR3 has no effect; L2's segment bases add WORLD.
        values.update(cr0=0x00000031, cr3=0x0222_3000, cr4=0x00200)
        flat = 0 if nested_paging else WORLD
    for name in ("cs", "ds"):
        values[f"{name}.base"] = flat
    return values


def l2_rbx() -> int:
    """Return L2's RBX, which is the same in every mode and identifies L2."""
    return _L2["rbx"]


def pdptes(*, nested_paging: bool) -> tuple[int, int, int, int]:
    """Return L2's page directory pointers in PAE mode."""
    directory = physical(nested_paging=nested_paging) + ADDRESSES["L2_PD"]
    return (directory | 1, directory + 0x1000 | 1, 0, 0)


def symbols(mode: Mode, *, nested_paging: bool) -> dict[str, int]:
    """Return the symbols of the assembly and their values."""
    table = {**ADDRESSES, **CONSTANTS}
    for who, registers in (("L1", L1), ("L2", l2(mode, nested_paging=nested_paging))):
        for name, value in registers.items():
            table[f"{who}_{name.upper().replace('.', '_')}"] = value
    pointers = pdptes(nested_paging=nested_paging)
    table.update(
        NESTED_CTL=int(nested_paging),
        L2_LONG=int(mode is Mode.LONG),
        L2_PAGING=int(mode is not Mode.PROTECTED),
        L2_PHYSICAL=physical(nested_paging=nested_paging),
        L2_PDPTE0=pointers[0],
        L2_PDPTE1=pointers[1],
    )
    return table
