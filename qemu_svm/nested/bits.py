"""Names of the bits and small numbers in the nested state.

Source: Linux ``arch/x86/include/asm/svm.h``, ``arch/x86/include/uapi/asm/kvm.h``
and ``arch/x86/kvm/svm/svm.h`` (5.10 to 7.2), whose names these are without
their prefixes; AMD64 APM volume 2, 15.9 to 15.36 and appendix B.
"""

from __future__ import annotations

from qemu_svm.x86.bits import Bits

FLAGS = Bits({0: "guest_mode", 1: "run_pending", 2: "evmcs", 3: "mtf_pending", 8: "gif_set"})
"""``kvm_nested_state.flags``."""

GUEST_MODE = 1 << 0
RUN_PENDING = 1 << 1
GIF_SET = 1 << 8

FORMATS = {0: "vmx", 1: "svm"}

_EXCEPTIONS = {
    0: "DE",
    1: "DB",
    2: "NMI",
    3: "BP",
    4: "OF",
    5: "BR",
    6: "UD",
    7: "NM",
    8: "DF",
    9: "CSO",
    10: "TS",
    11: "NP",
    12: "SS",
    13: "GP",
    14: "PF",
    16: "MF",
    17: "AC",
    18: "MC",
    19: "XM",
    20: "VE",
    21: "CP",
    28: "HV",
    29: "VC",
    30: "SX",
}
"""Mnemonics of the exceptions by vector."""

_MISC = (
    ("INTR", "NMI", "SMI", "INIT", "VINTR", "SELECTIVE_CR0", "STORE_IDTR", "STORE_GDTR")
    + ("STORE_LDTR", "STORE_TR", "LOAD_IDTR", "LOAD_GDTR", "LOAD_LDTR", "LOAD_TR", "RDTSC")
    + ("RDPMC", "PUSHF", "POPF", "CPUID", "RSM", "IRET", "INTn", "INVD", "PAUSE", "HLT")
    + ("INVLPG", "INVLPGA", "IOIO_PROT", "MSR_PROT", "TASK_SWITCH", "FERR_FREEZE", "SHUTDOWN")
)
"""Word 3."""

_SVM = (
    ("VMRUN", "VMMCALL", "VMLOAD", "VMSAVE", "STGI", "CLGI", "SKINIT", "RDTSCP", "ICEBP")
    + ("WBINVD", "MONITOR", "MWAIT", "MWAIT_COND", "XSETBV", "RDPRU", "TRAP_EFER_WRITE")
)  # fmt: skip
"""Word 4, low half; the high half traps writes to CR0 to CR15."""

_EXTENDED = ("INVLPGB", "INVLPGB_ILLEGAL", "INVPCID", "MCOMMIT", "TLBSYNC", "BUS_LOCK", "IDLE_HLT")
"""Word 5."""


def exception_name(vector: int) -> str:
    """Return the mnemonic of an exception vector, such as ``#PF``."""
    name = _EXCEPTIONS.get(vector)
    return f"#{name}" if name else f"#{vector}"


def _intercept_names() -> dict[int, str]:
    names: dict[int, str] = {}
    for register in range(16):
        names[register] = f"CR{register}_READ"
        names[16 + register] = f"CR{register}_WRITE"
        names[32 + register] = f"DR{register}_READ"
        names[48 + register] = f"DR{register}_WRITE"
        names[128 + 16 + register] = f"TRAP_CR{register}_WRITE"
    for vector in range(32):
        names[64 + vector] = f"EXCEPTION_{exception_name(vector)[1:]}"
    names |= {96 + bit: name for bit, name in enumerate(_MISC)}
    names |= {128 + bit: name for bit, name in enumerate(_SVM)}
    names |= {160 + bit: name for bit, name in enumerate(_EXTENDED)}
    return names


INTERCEPTS = Bits(_intercept_names())
"""The six intercept words as one number: bit 32 * word + bit."""

INT_CTL = Bits(
    {
        8: "V_IRQ",
        9: "V_GIF",
        11: "V_NMI_PENDING",
        12: "V_NMI_BLOCKING",
        20: "V_IGN_TPR",
        24: "V_INTR_MASKING",
        25: "V_GIF_ENABLE",
        26: "V_NMI_ENABLE",
        30: "X2AVIC_MODE",
        31: "AVIC_ENABLE",
    },
    ignore=0xF_00FF,
)
"""Without V_TPR (bits 7:0) and V_INTR_PRIO (19:16)."""

V_TPR_MASK = 0x0F
"""The bits of V_TPR that KVM knows (``arch/x86/include/asm/svm.h``)."""

V_INTR_PRIO_SHIFT = 16

INT_STATE = Bits({0: "INTERRUPT_SHADOW", 1: "GUEST_INTERRUPT_MASK"})

NESTED_CTL = Bits(
    {
        0: "NP_ENABLE",
        1: "SEV_ENABLE",
        2: "SEV_ES_ENABLE",
        3: "GMET_ENABLE",
        5: "VTE",
    }
)
"""``nested_ctl``, called ``misc_ctl`` since 7.2."""

VIRT_EXT = Bits(
    {
        0: "LBR_CTL_ENABLE",
        1: "VIRTUAL_VMLOAD_VMSAVE",
        2: "IBS_VIRTUALIZATION",
        3: "PMC_VIRTUALIZATION",
    }
)
"""``virt_ext``, called ``misc_ctl2`` since 7.2."""

ERAP_CTL = Bits({0: "ALLOW_LARGER_RAP", 1: "CLEAR_RAP"})

TLB_CTL = {0: "do nothing", 1: "flush all ASIDs", 3: "flush this ASID", 7: "flush non-global"}

CLEAN = Bits(
    {
        0: "INTERCEPTS",
        1: "PERM_MAP",
        2: "ASID",
        3: "INTR",
        4: "NPT",
        5: "CR",
        6: "DR",
        7: "DT",
        8: "SEG",
        9: "CR2",
        10: "LBR",
        11: "AVIC",
        12: "CET",
        31: "SW",
    }
)
"""VMCB clean bits; 31 is software's, used for the Hyper-V enlightenments."""

HV_CONTROL = Bits({0: "NESTED_FLUSH_HYPERCALL", 1: "MSR_BITMAP", 2: "ENLIGHTENED_NPT_TLB"})

EVENT_TYPES = {0: "external interrupt", 2: "NMI", 3: "exception", 4: "software interrupt"}
EVENT_VALID = 1 << 31
EVENT_ERROR_CODE = 1 << 11

NAMED: dict[str, Bits] = {
    "int_ctl": INT_CTL,
    "int_state": INT_STATE,
    "nested_ctl": NESTED_CTL,
    "virt_ext": VIRT_EXT,
    "erap_ctl": ERAP_CTL,
    "clean": CLEAN,
}
"""Tables by control field."""


def intercept_words(words: list[int]) -> int:
    """Join the six 32-bit intercept words into one number."""
    return sum(word << 32 * index for index, word in enumerate(words))


def event_words(event: int, error_code: int) -> str:
    """Describe an EVENTINJ or EXITINTINFO value in words."""
    if not event & EVENT_VALID:
        return "none"
    number, vector = event >> 8 & 7, event & 0xFF
    kind = EVENT_TYPES.get(number, f"reserved type {number}")
    name = exception_name(vector) if number == 3 else f"vector {vector:#x}"
    text = f"{kind} {name}" if number != 2 else kind
    return f"{text} error code {error_code:#x}" if event & EVENT_ERROR_CODE else text
