"""QEMU's own flags words of a vCPU.

Under KVM only some bits are meaningful: GUEST and SMM in ``hflags``, GIF and
the NMI bits in ``hflags2``; the rest is recomputed on load.

Source: QEMU ``target/i386/cpu.h`` (``HF_*_SHIFT``, ``HF2_*_SHIFT``), 5.2 to 10.2.
"""

from __future__ import annotations

from qemu_svm.x86.bits import Bits

HFLAGS = Bits(
    {
        3: "INHIBIT_IRQ",
        4: "CS32",
        5: "SS32",
        6: "ADDSEG",
        7: "PE",
        8: "TF",
        9: "MP",
        10: "EM",
        11: "TS",
        14: "LMA",
        15: "CS64",
        16: "RF",
        17: "VM",
        18: "AC",
        19: "SMM",
        20: "SVME",
        21: "GUEST",
        22: "OSFXSR",
        23: "SMAP",
        24: "IOBPT",
        25: "MPX_EN",
        26: "MPX_IU",
        27: "UMIP",
        28: "AVX_EN",
    },
    ignore=3 | 3 << 12,
)
"""Without CPL (bits 1:0) and IOPL (13:12)."""

HFLAGS2 = Bits(
    {
        0: "GIF",
        1: "HIF",
        2: "NMI",
        3: "VINTR",
        4: "SMM_INSIDE_NMI",
        5: "MPX_PR",
        6: "NPT",
        7: "IGNNE",
        8: "VGIF",
    }
)

GUEST = 1 << 21
SMM = 1 << 19
GIF = 1 << 0
