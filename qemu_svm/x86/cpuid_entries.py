"""Conversion between KVM's CPUID entries and the model's features.

Source: AMD64 APM volume 3, appendix E; Linux
``arch/x86/include/asm/cpufeatures.h``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qemu_svm.x86.cpuid import Cpuid

BITS: Mapping[str, tuple[int, str, int]] = {
    "vmx": (1, "ecx", 5),
    "pcid": (1, "ecx", 17),
    "x2apic": (1, "ecx", 21),
    "xsave": (1, "ecx", 26),
    "fsgsbase": (7, "ebx", 0),
    "smep": (7, "ebx", 7),
    "invpcid": (7, "ebx", 10),
    "smap": (7, "ebx", 20),
    "umip": (7, "ecx", 2),
    "pku": (7, "ecx", 3),
    "shstk": (7, "ecx", 7),
    "la57": (7, "ecx", 16),
    "svm": (0x8000_0001, "ecx", 2),
    "skinit": (0x8000_0001, "ecx", 12),
    "nx": (0x8000_0001, "edx", 20),
    "fxsr_opt": (0x8000_0001, "edx", 25),
    "rdtscp": (0x8000_0001, "edx", 27),
    "lm": (0x8000_0001, "edx", 29),
    "rdpru": (0x8000_0008, "ebx", 4),
    "npt": (0x8000_000A, "edx", 0),
    "nrips": (0x8000_000A, "edx", 3),
    "tscratemsr": (0x8000_000A, "edx", 4),
    "vgif": (0x8000_000A, "edx", 16),
    "gmet": (0x8000_000A, "edx", 17),
    "sev_es": (0x8000_001F, "eax", 3),
    "autoibrs": (0x8000_0021, "eax", 8),
}
"""Leaf, register and bit of each feature (sub-leaf 0)."""
_SIZES = 0x8000_0008

Entry = Mapping[str, Any]
Entries = tuple[tuple[int, ...], ...]
"""Function, index, flags, EAX, EBX, ECX, EDX of each entry."""
_PARTS = ("function", "index", "flags", "eax", "ebx", "ecx", "edx")
_RUNTIME: Mapping[tuple[int, int], tuple[str, int]] = {
    (1, 0): ("ecx", 1 << 27 | 1 << 3),  # OSXSAVE, MONITOR
    (7, 0): ("ecx", 1 << 4),  # OSPKE
    (0xD, 0): ("ebx", (1 << 32) - 1),  # sizes by XCR0
    (0xD, 1): ("ebx", (1 << 32) - 1),
}
_APIC, _PV_FEATURES, _PV_UNHALT = 1 << 9, 0x4000_0001, 1 << 7


def features(entries: Sequence[Entry]) -> Cpuid:
    """Return the features and the address width of KVM's entries."""
    found = {name for name, (leaf, register, bit) in BITS.items()
             if _register(entries, leaf, register) >> bit & 1}  # fmt: skip
    width = _register(entries, _SIZES, "eax") & 0xFF
    return Cpuid(frozenset(found), width or 36)


def without_runtime(entries: Sequence[Entry]) -> Entries:
    """Return entries without what KVM sets itself by the vCPU's state.

    That is ``__kvm_update_cpuid_runtime`` (Linux ``arch/x86/kvm/cpuid.c``).
    """
    found = []
    for entry in entries:
        made = {name: int(entry[name]) for name in _PARTS}
        register, bits = _RUNTIME.get((made["function"], made["index"]), ("eax", 0))
        made[register] &= ~bits
        if made["function"] == 1:
            made["edx"] &= ~_APIC
        elif made["function"] == _PV_FEATURES:
            made["eax"] &= ~_PV_UNHALT
        found.append(tuple(made.values()))
    return tuple(found)


def _register(entries: Sequence[Entry], leaf: int, register: str) -> int:
    for entry in entries:
        if entry["function"] == leaf and entry["index"] == 0:
            return int(entry[register])
    return 0


def changed(entries: Sequence[Entry], wanted: Cpuid) -> list[dict[str, Any]]:
    """Return the entries with exactly the features and the address width of ``wanted``."""
    made = [dict(entry) for entry in entries]
    present = features(made)
    for name in wanted.features - present.features:
        leaf, register, bit = BITS[name]
        _entry(made, leaf)[register] |= 1 << bit
    for name in present.features - wanted.features:
        leaf, register, bit = BITS[name]
        _entry(made, leaf)[register] &= ~(1 << bit)
    sizes = _entry(made, _SIZES)
    sizes["eax"] = sizes["eax"] & ~0xFF | wanted.maxphyaddr & 0xFF
    return made


def _entry(entries: list[dict[str, Any]], leaf: int) -> dict[str, Any]:
    for entry in entries:
        if entry["function"] == leaf and entry["index"] == 0:
            return entry
    made = dict.fromkeys(("function", "index", "flags", "eax", "ebx", "ecx", "edx"), 0)
    made["function"] = leaf
    entries.append(made)
    return made
