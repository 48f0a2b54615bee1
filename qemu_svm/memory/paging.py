"""Page tables of x86: the formats, and which bits of an entry mean what.

=============  ==================================  =========================
mode           chosen by                           levels, bytes of an entry
=============  ==================================  =========================
none           CR0.PG clear                        linear is physical
32-bit         PG, no PAE                          2, 4
PAE            PAE, EFER.LMA clear                 3, 8
long           LMA                                 4, 8
long 5-level   LMA, CR4.LA57                       5, 8
=============  ==================================  =========================

Source: AMD64 APM volume 2, chapter 5 and 15.25 (nested paging); Linux
``arch/x86/kvm/mmu/mmu.c`` (``__reset_rsvds_bits_mask``, ``make_mmio_spte``).
"""

from __future__ import annotations

from dataclasses import dataclass

from qemu_svm.x86.registers import CR0, CR4, EFER

P, W, U = 1, 2, 4
PS = 1 << 7
NX = 1 << 63
ADDRESS = 0x000F_FFFF_FFFF_F000
_BIT51 = 1 << 51
_NAMES = {
    1: "W", 2: "U", 3: "PWT", 4: "PCD", 5: "A", 6: "D", 7: "PS", 8: "G",
}  # fmt: skip
_PG, _WP = CR0.mask("PG"), CR0.mask("WP")
_PSE, _PAE, _LA57 = CR4.mask("PSE"), CR4.mask("PAE"), CR4.mask("LA57")
_SMEP, _SMAP = CR4.mask("SMEP"), CR4.mask("SMAP")
_LMA, _NXE = EFER.mask("LMA"), EFER.mask("NX")
_AC = 1 << 18
DEFAULT_PHYSICAL_BITS = 51
"""Bit 51 counts as reserved: KVM marks MMIO with it, and nobody has 2 PiB of RAM."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of tables.

    :param shift: position of the index in an address.
    :param bits: width of the index.
    :param reserved: bits that must be clear in an entry that leads to a table, or in level 1.
    :param leaf: the same for an entry that maps a large page; None if there is none.
    """

    number: int
    shift: int
    bits: int
    reserved: int
    leaf: int | None = None


@dataclass(frozen=True, slots=True)
class Paging:
    """A mode of paging with all that decides about a translation.

    :param root: physical address of the first table.
    :param levels: from the first table to level 1; empty without paging.
    :param width: bits of a linear address.
    :param canonical: bits above ``width`` repeat the one below.
    :param entry: bytes of an entry.
    """

    name: str
    root: int
    levels: tuple[Level, ...]
    width: int
    entry: int
    canonical: bool = False
    nx: bool = False
    wp: bool = False
    smep: bool = False
    smap: bool = False

    def leaf_address(self, entry: int, level: Level) -> int:
        """Physical address that a leaf entry maps."""
        below = (1 << level.shift) - 1
        if self.entry == 4:
            if level.number == 1:
                return entry & 0xFFFF_F000
            return entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32
        return entry & ADDRESS & ~below

    def table_address(self, entry: int) -> int:
        """Physical address of the table that an entry leads to."""
        return entry & (0xFFFF_F000 if self.entry == 4 else ADDRESS)

    def names(self, entry: int, level: Level, *, leaf: bool) -> tuple[str, ...]:
        """Names of the bits set in an entry."""
        found = ["P"] if entry & P else []
        found += [name for bit, name in _NAMES.items() if entry >> bit & 1]
        if level.number == 1 and "PS" in found:
            found[found.index("PS")] = "PAT"
        elif leaf and level.number > 1 and entry & 1 << 12:
            found.append("PAT")
        return (*found, "NX") if self.entry == 8 and entry & NX else tuple(found)


def _levels(shifts: tuple[int, ...], high: int, no_nx: int) -> tuple[Level, ...]:
    found = []
    for number, shift in zip(range(len(shifts), 0, -1), shifts, strict=True):
        base = high | no_nx
        leaf = None
        if number in (2, 3):
            leaf = base | (1 << shift) - 1 & ~0x1FFF
        found.append(Level(number, shift, 9, base | (PS if number > 3 else 0), leaf))
    return tuple(found)


def mode(cr0: int, cr3: int, cr4: int, efer: int, physical_bits: int = 0) -> Paging:
    """The paging that control registers choose.

    :param physical_bits: width of a physical address; 0 if it is not known.
    """
    high = ADDRESS & ~((1 << (physical_bits or DEFAULT_PHYSICAL_BITS)) - 1) | _BIT51
    nx = bool(efer & _NXE)
    no_nx = 0 if nx else NX
    protected = {"wp": bool(cr0 & _WP), "smep": bool(cr4 & _SMEP), "smap": bool(cr4 & _SMAP)}
    if not cr0 & _PG:
        return Paging("no paging", 0, (), 32, 8)
    if efer & _LMA:
        five = bool(cr4 & _LA57)
        shifts = (48, 39, 30, 21, 12) if five else (39, 30, 21, 12)
        levels = _levels(shifts, high, no_nx)
        name, width = ("5-level", 57) if five else ("4-level", 48)
        return Paging(name, cr3 & ADDRESS, levels, width, 8, canonical=True, nx=nx, **protected)
    if cr4 & _PAE:
        # A processor loads these with CR3 and checks bits 1, 2 and 5 to 8 then; in memory an
        # emulated one (TCG) sets bit 5 (accessed) afterwards.
        first = Level(3, 30, 2, high | 0xFFF << 52)
        levels = (first, *_levels((21, 12), high | 0x7FF << 52, no_nx))
        return Paging("PAE", cr3 & 0xFFFF_FFE0, levels, 32, 8, nx=nx, **protected)
    large = 1 << 21 if cr4 & _PSE else None
    levels = (Level(2, 22, 10, 0, large), Level(1, 12, 10, 0))
    return Paging("32-bit", cr3 & 0xFFFF_F000, levels, 32, 4, **protected)


def permitted(
    paging: Paging, access: str, *, writable: bool, user: bool, nx: bool, ac: bool
) -> bool:
    """Whether a guest's own tables permit an access.

    :param access: letters of ``rwxu``; none of them asks nothing.
    :param writable: W of all levels, and ``user`` U; ``nx`` NX of any.
    :param ac: RFLAGS.AC, which suspends SMAP.
    """
    as_user = "u" in access
    if as_user and not user:
        return False
    if "w" in access and not writable and (as_user or paging.wp):
        return False
    if "x" in access and (nx or (paging.smep and user and not as_user)):
        return False
    data = "r" in access or "w" in access
    return not (data and not as_user and user and paging.smap and not ac)


def is_mmio_mark(entry: int, address: int, physical_bits: int = 0) -> bool:
    """Whether a present entry of level 1 is KVM's mark for MMIO at ``address``.

    KVM sets a reserved bit above the guest-physical address and keeps that address.
    """
    known = (1 << (physical_bits or DEFAULT_PHYSICAL_BITS)) - 1
    place = entry & ADDRESS
    return bool(place & ~known or place & _BIT51) and place & known & ~_BIT51 == address & ~0xFFF


def ac(rflags: int) -> bool:
    """Whether RFLAGS.AC is set."""
    return bool(rflags & _AC)
