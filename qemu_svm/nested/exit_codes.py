"""Names of #VMEXIT codes.

Every intercept bit has the exit code of its own number (CPUID: word 3, bit 18,
so 32 * 3 + 18 = 0x72); a few codes have no intercept bit.

Source: AMD64 APM volume 2, appendix C; Linux
``arch/x86/include/uapi/asm/svm.h``, whose names these are without ``SVM_EXIT_``.
"""

from __future__ import annotations

from qemu_svm.nested.bits import INTERCEPTS

INVALID = 0xFFFF_FFFF_FFFF_FFFF
INVALID_32 = 0xFFFF_FFFF
"""INVALID as kernels before 2026 wrote it: only the low half."""

SW = 0xF000_0000
"""Used by KVM when an SMI forces an exit from L2."""

_RENAMED = {
    "SELECTIVE_CR0": "CR0_SEL_WRITE",
    "STORE_IDTR": "IDTR_READ",
    "STORE_GDTR": "GDTR_READ",
    "STORE_LDTR": "LDTR_READ",
    "STORE_TR": "TR_READ",
    "LOAD_IDTR": "IDTR_WRITE",
    "LOAD_GDTR": "GDTR_WRITE",
    "LOAD_LDTR": "LDTR_WRITE",
    "LOAD_TR": "TR_WRITE",
    "INTn": "SWINT",
    "IOIO_PROT": "IOIO",
    "MSR_PROT": "MSR",
    "TRAP_EFER_WRITE": "EFER_WRITE_TRAP",
}
"""Exits whose names differ from those of their intercepts."""

_OTHER = {
    0x400: "NPF",
    0x401: "AVIC_INCOMPLETE_IPI",
    0x402: "AVIC_UNACCELERATED_ACCESS",
    0x403: "VMGEXIT",
    SW: "SW",
    INVALID: "INVALID",
    INVALID_32: "INVALID",
}


def _names() -> dict[int, str]:
    names: dict[int, str] = {}
    for bit, name in INTERCEPTS.items():
        kind, _, way = name.partition("_")
        if way in ("READ", "WRITE"):
            names[bit] = f"{way}_{kind}"
        elif kind == "EXCEPTION":
            names[bit] = f"EXCP_{way}"
        elif name.startswith("TRAP_CR"):
            names[bit] = f"{name[5:]}_TRAP"
        else:
            names[bit] = _RENAMED.get(name, name)
    return names | _OTHER


EXIT_CODES = _names()


def exit_name(code: int) -> str:
    """Return the name of an exit code, or ``unknown``."""
    return EXIT_CODES.get(code, "unknown")
