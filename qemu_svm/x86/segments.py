"""Segment registers, and the three forms in which their attributes are kept.

* the **VMCB** packs bytes 5 and 6 of the descriptor without the limit nibble
  into 12 bits (:data:`PARTS`);
* **QEMU** keeps the descriptor's second dword: the same bits at 8 to 15 and
  20 to 23 (``DESC_*`` in ``target/i386/cpu.h``);
* **KVM**'s ``struct kvm_segment`` has a byte for each part.

Source: AMD64 APM volume 2, 15.5.1 and appendix B; QEMU ``target/i386/kvm/kvm.c``
(``get_seg``, ``set_seg``); Linux ``arch/x86/kvm/svm/svm.c`` (``svm_get_segment``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from qemu_svm.x86.bits import Bits

TABLES = frozenset({"gdt", "idt", "gdtr", "idtr"})
"""Registers that have a base and a limit, and neither selector nor attributes."""

PARTS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "type": (0, 0xF),
        "s": (4, 1),
        "dpl": (5, 3),
        "present": (7, 1),
        "avl": (8, 1),
        "l": (9, 1),
        "db": (10, 1),
        "g": (11, 1),
    }
)
"""Lowest bit and mask of each part of the VMCB's attributes, by KVM's names."""

ATTRIBUTES = Bits(
    {PARTS[part][0]: {"present": "P"}.get(part, part.upper())
     for part, (_, mask) in PARTS.items() if mask == 1},
    ignore=0x6F,
)  # fmt: skip
"""VMCB attributes without type and DPL."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with its hidden part.

    ``attrib`` is in VMCB form.  ``limit`` in bytes.
    """

    selector: int
    base: int
    limit: int
    attrib: int

    @property
    def present(self) -> bool:
        """P."""
        return bool(self.attrib & 0x80)

    @property
    def dpl(self) -> int:
        """Descriptor privilege level."""
        return self.attrib >> 5 & 3

    @property
    def type(self) -> int:
        """Descriptor type, 4 bits."""
        return self.attrib & 0xF

    @property
    def long(self) -> bool:
        """L: 64-bit code, if EFER.LMA is set."""
        return bool(self.attrib & 0x200)

    def with_part(self, part: str, value: int) -> Segment:
        """Return the segment with one part of the attributes changed; excess bits are cut off.

        :raises KeyError: no such part.
        """
        shift, mask = PARTS[part]
        attrib = self.attrib & ~(mask << shift) | (value & mask) << shift
        return replace(self, attrib=attrib)

    def as_list(self) -> list[int]:
        """``[selector, base, limit, attrib]``."""
        return [self.selector, self.base, self.limit, self.attrib]

    def kvm(self) -> dict[str, int]:
        """Return ``struct kvm_segment`` by field names.

        A segment that is not present is unusable, as in QEMU (``set_seg``).
        """
        values = {part: self.attrib >> shift & mask for part, (shift, mask) in PARTS.items()}
        return values | {
            "base": self.base,
            "limit": self.limit,
            "selector": self.selector,
            "unusable": int(not self.present),
        }


def from_kvm(values: Mapping[str, int]) -> Segment:
    """Read ``struct kvm_segment``; ``unusable`` is not kept."""
    attrib = sum((values[part] & mask) << shift for part, (shift, mask) in PARTS.items())
    return Segment(values["selector"], values["base"], values["limit"], attrib)


def attrib_from_flags(flags: int) -> int:
    """Convert QEMU's flags to the VMCB's attributes."""
    return flags >> 8 & 0xFF | flags >> 12 & 0xF00


def flags_from_attrib(attrib: int) -> int:
    """Convert the VMCB's attributes to QEMU's flags."""
    return (attrib & 0xFF) << 8 | (attrib & 0xF00) << 12


def attrib_words(attrib: int, *, system: bool = False) -> str:
    """Describe the attributes in a few words, such as ``code64 DPL 0 G``.

    :param system: the register is LDTR or TR, regardless of its S bit.
    """
    if not attrib & 0x80:
        return "not present"
    kind = _system_kind(attrib) if system or not attrib & 0x10 else _kind(attrib)
    words = [kind, f"DPL {attrib >> 5 & 3}"]
    words += [name for name in ATTRIBUTES.names(attrib & 0xF00) if name not in ("L", "DB")]
    return " ".join(words)


def _kind(attrib: int) -> str:
    if attrib & 8:
        return "code64" if attrib & 0x200 else "code32" if attrib & 0x400 else "code16"
    return "data32" if attrib & 0x400 else "data16"


_SYSTEM = {1: "TSS16", 2: "LDT", 3: "TSS16 busy", 9: "TSS", 11: "TSS busy"}


def _system_kind(attrib: int) -> str:
    return _SYSTEM.get(attrib & 0xF, f"system type {attrib & 0xF:#x}")
