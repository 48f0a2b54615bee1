"""KVM's checks before it restores anything: one predicate for each check.

Each predicate returns whether the check *fails*.  Which kernel runs which, and
in which order, is in :mod:`qemu_svm.model.profiles`; the words are in
:mod:`qemu_svm.model.rules`.

Source: Linux ``arch/x86/kvm/svm/nested.c`` (``svm_set_nested_state``,
``nested_vmcb_check_controls``, ``nested_vmcb_check_save``),
``arch/x86/kvm/x86.c`` (``kvm_arch_vcpu_ioctl``, ``kvm_is_valid_sregs``;
``regs.c`` since 7.2), 5.10, 6.1, 6.12, 7.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from qemu_svm.model.area import Area
from qemu_svm.model.kvm.vcpu import KvmVcpu
from qemu_svm.nested import NestedState, bits, layout
from qemu_svm.x86.cpuid import cr4_reserved, is_legal_gpa, page_address_valid, valid_efer
from qemu_svm.x86.msrs import pat_valid
from qemu_svm.x86.registers import CR0, CR4, EFER, RFLAGS, uses_pae
from qemu_svm.x86.segments import ATTRIBUTES

_HIGH = 0xFFFF_FFFF_0000_0000
_LIVE = EFER.mask("LME")
_SVME = EFER.mask("SVME")
_LMA = EFER.mask("LMA")
_PG, _PE, _NW, _CD = (CR0.mask(name) for name in ("PG", "PE", "NW", "CD"))
_PAE = CR4.mask("PAE")
_VM = RFLAGS.mask("VM")
_L_AND_DB = ATTRIBUTES.mask("L", "DB")
_V_NMI_ENABLE = bits.INT_CTL.mask("V_NMI_ENABLE")
_VMRUN, _NMI = (bits.INTERCEPTS.mask(name) for name in ("VMRUN", "NMI"))
_NP_ENABLE = bits.NESTED_CTL.mask("NP_ENABLE")
_KNOWN_FLAGS = 0x10F
_SVM_FLAGS = bits.GUEST_MODE | bits.RUN_PENDING | bits.GIF_SET
_MSRPM_SIZE = 0x2000
_IOPM_SIZE = 0x3000
_APIC_BASE_RESERVED, _X2APIC, _APIC_ENABLED = 0x2FF, 1 << 10, 1 << 11
_VALID_EXCEPTIONS = frozenset({0, 1, *range(3, 9), *range(10, 15), 16, 17, 18, 19, 28, 30})


@dataclass(frozen=True, slots=True)
class Argument:
    """The argument of KVM_SET_NESTED_STATE as KVM has copied it.

    :param ctl: the control area, masked as the kernel's cache is.
    :param save: the save area.
    """

    nested: NestedState
    ctl: Area
    save: Area

    @property
    def guest_mode(self) -> bool:
        """KVM_STATE_NESTED_GUEST_MODE."""
        return self.nested.guest_mode


class Stage(Enum):
    """Where KVM_SET_NESTED_STATE makes a check."""

    HEADER = "svm_set_nested_state, before the VMCB is copied"
    CONTROLS = "nested_vmcb_check_controls"
    SAVE = "nested_vmcb_check_save"
    STATE = "svm_set_nested_state, after the VMCB was copied"
    LOAD_CR3 = "nested_svm_load_cr3"

    @property
    def in_vmrun(self) -> bool:
        """Whether VMRUN makes the check as well."""
        return self in (Stage.CONTROLS, Stage.SAVE)


Predicate = Callable[[KvmVcpu, Argument], bool]


@dataclass(frozen=True, slots=True)
class Check:
    """One check of KVM_SET_NESTED_STATE.

    :param fails: whether it fails for this vCPU and argument.
    """

    stage: Stage
    fails: Predicate


ERRNOS: Mapping[str, str] = {"GET-01": "E2BIG", "GET-02": "E2BIG", "U-06": "EIO"}
"""The errno of an ioctl whose check fails, if it is not EINVAL."""


def errno_of(check: str) -> str:
    """Return the name of the errno with which an ioctl fails if this check does."""
    return ERRNOS.get(check, "EINVAL")


def _intercepts(argument: Argument, mask: int) -> bool:
    return bool(argument.ctl.get("intercepts") & mask)


def _bad_bitmap(vcpu: KvmVcpu, address: int, size: int) -> bool:
    # nested_svm_check_bitmap_pa: PAGE_ALIGN rounds up; the last byte counts.
    start = address + 0xFFF & ~0xFFF & (1 << 64) - 1
    return not (is_legal_gpa(vcpu.cpuid, start) and is_legal_gpa(vcpu.cpuid, start + size - 1))


def _nested_paging(argument: Argument) -> bool:
    return bool(argument.ctl.get("nested_ctl") & _NP_ENABLE)


def _svme(vcpu: KvmVcpu) -> bool:
    return bool(vcpu.arch.get("efer") & _SVME)


def _l2_has_pat(vcpu: KvmVcpu, argument: Argument) -> bool:
    return vcpu.host.separate_pat and _nested_paging(argument)


def _long_mode(argument: Argument) -> bool:
    return bool(argument.save.get("efer") & _LIVE and argument.save.get("cr0") & _PG)


def _bad_event(argument: Argument) -> bool:
    event = argument.ctl.get("event_inj")
    if not event & bits.EVENT_VALID:
        return False
    kind, vector = event >> 8 & 7, event & 0xFF
    return kind not in (0, 2, 3, 4) or (kind == 3 and vector not in _VALID_EXCEPTIONS)


_HEADER_CHECKS: dict[str, Predicate] = {
    "SET-03": lambda _v, a: a.nested.size < layout.UAPI_HEADER_SIZE,
    "SET-04": lambda _v, a: bool(a.nested.flags & ~_KNOWN_FLAGS),
    "SET-05": lambda _v, a: bool(a.nested.flags & bits.RUN_PENDING) and not a.guest_mode,
    "SV-01": lambda _v, a: not a.nested.is_svm,
    "SV-02": lambda _v, a: bool(a.nested.flags & ~_SVM_FLAGS),
    "SV-03": lambda v, a: not _svme(v) and a.nested.flags != bits.GIF_SET,
    "SV-03b": lambda v, a: not _svme(v) and a.nested.flags not in (0, bits.GIF_SET),
    "SV-04": lambda v, a: v.smm and a.guest_mode,
    "SV-05": lambda v, a: not page_address_valid(v.cpuid, a.nested.vmcb_pa),
    "SV-06": lambda _v, a: a.nested.size < layout.NESTED_STATE_SIZE,
}
_CONTROL_CHECKS: dict[str, Predicate] = {
    "C-01": lambda _v, a: not _intercepts(a, _VMRUN),
    "C-02": lambda _v, a: a.ctl.get("asid") == 0,
    "C-03": lambda v, a: _nested_paging(a) and not v.host.npt,
    "C-03b": lambda v, a: _nested_paging(a) and not is_legal_gpa(v.cpuid, a.ctl.get("nested_cr3")),
    "C-04": lambda v, a: _bad_bitmap(v, a.ctl.get("msrpm_base_pa"), _MSRPM_SIZE),
    "C-05": lambda v, a: _bad_bitmap(v, a.ctl.get("iopm_base_pa"), _IOPM_SIZE),
    "C-06": lambda _v, a: a.ctl.get("tlb_ctl") not in (0, 1),
    "C-07": lambda _v, a: bool(a.ctl.get("int_ctl") & _V_NMI_ENABLE) and not _intercepts(a, _NMI),
    "C-08": lambda _v, a: _bad_event(a),
}
_STATE_CHECKS: dict[str, Predicate] = {
    "SV-10": lambda v, _a: v.arch.get("cr0") & (_NW | _CD) == _NW,
    "SV-11": lambda _v, a: not a.save.get("cr0") & _PG,
    "SV-12": lambda _v, a: not a.save.get("efer") & _SVME,
    "SV-13": lambda _v, a: not a.save.get("cr0") & _PE,
    "SV-14": lambda _v, a: bool(a.save.get("rflags") & _VM),
    "SV-17": lambda v, a: _l2_has_pat(v, a) and not pat_valid(a.nested.gpat),
}
_SAVE_CHECKS: dict[str, Predicate] = {
    "SV-18": lambda _v, a: a.save.get("efer") & (_LMA | _LIVE) == _LMA,
    "S-01": lambda _v, a: not a.save.get("efer") & _SVME,
    "S-02": lambda _v, a: a.save.get("cr0") & (_NW | _CD) == _NW,
    "S-03": lambda _v, a: bool(a.save.get("cr0") & _HIGH),
    "S-04": lambda _v, a: bool((a.save.get("dr6") | a.save.get("dr7")) & _HIGH),
    "S-05": lambda _v, a: _long_mode(a) and not a.save.get("cr4") & _PAE,
    "S-06": lambda _v, a: _long_mode(a) and not a.save.get("cr0") & _PE,
    "S-07": lambda v, a: _long_mode(a) and not is_legal_gpa(v.cpuid, a.save.get("cr3")),
    "S-09": lambda _v, a: _long_mode(a) and a.save.segment("cs").attrib & _L_AND_DB == _L_AND_DB,
    "S-10": lambda v, a: bool(
        a.save.get("cr4") & (cr4_reserved(v.host.cpuid) | cr4_reserved(v.cpuid))
    ),
    "S-11": lambda v, a: not valid_efer(v.host.cpuid, v.cpuid, a.save.get("efer")),
}
_CR3_CHECKS: dict[str, Predicate] = {
    "SV-16": lambda v, _a: not is_legal_gpa(v.cpuid, v.arch.get("cr3")),
}

SET_NESTED_STATE: Mapping[str, Check] = MappingProxyType(
    {
        name: Check(stage, fails)
        for stage, checks in (
            (Stage.HEADER, _HEADER_CHECKS),
            (Stage.CONTROLS, _CONTROL_CHECKS),
            (Stage.STATE, _STATE_CHECKS),
            (Stage.SAVE, _SAVE_CHECKS),
            (Stage.LOAD_CR3, _CR3_CHECKS),
        )
        for name, fails in checks.items()
    }
)
"""Checks of KVM_SET_NESTED_STATE by id; the kernel's profile has their order."""


def _sregs_long_mode(area: Area) -> bool:
    return bool(area.get("efer") & _LIVE and area.get("cr0") & _PG)


def _bad_mode(_vcpu: KvmVcpu, area: Area) -> bool:
    if _sregs_long_mode(area):
        return not area.get("cr4") & _PAE or not area.get("efer") & _LMA
    return bool(area.get("efer") & _LMA or area.segment("cs").long)


def _cr4_of_guest(vcpu: KvmVcpu) -> int:
    # Until CPUID is set nothing is reserved, unless the kernel treats that as a CPUID.
    known = vcpu.cpuid.features or vcpu.kernel.blank_cpuid_counts
    return cr4_reserved(vcpu.cpuid) if known else 0


def _bad_apic_base(vcpu: KvmVcpu, area: Area) -> bool:
    # Bits 10 and 11: x2APIC mode, enabled.  x2APIC without enabled is invalid.
    if "apic_base" not in area:
        return False
    base = area.get("apic_base")
    if vcpu.kernel.same_apic_base and base == vcpu.arch.get("apic_base"):
        return False
    reserved = _APIC_BASE_RESERVED | (0 if vcpu.cpuid.has("x2apic") else _X2APIC)
    return (
        bool(base & reserved)
        or not is_legal_gpa(vcpu.cpuid, base)
        or base & (_X2APIC | _APIC_ENABLED) == _X2APIC
    )


def _pdptrs_without_pae(_vcpu: KvmVcpu, area: Area) -> bool:
    pae = uses_pae(area.get("cr0"), area.get("cr4"), area.get("efer"))
    return "pdptr0" in area and not pae


SET_SREGS: dict[str, Callable[[KvmVcpu, Area], bool]] = {
    "R-01": _bad_mode,
    "R-02": lambda v, s: _sregs_long_mode(s) and not is_legal_gpa(v.cpuid, s.get("cr3")),
    "R-03": lambda v, s: bool(s.get("cr4") & (cr4_reserved(v.host.cpuid) | _cr4_of_guest(v))),
    "R-04": lambda _v, s: (
        bool(s.get("cr0") & _HIGH)
        or s.get("cr0") & (_NW | _CD) == _NW
        or s.get("cr0") & (_PG | _PE) == _PG
    ),
    "R-05": lambda v, s: not valid_efer(v.host.cpuid, v.cpuid, s.get("efer")),
    "R-07": _bad_apic_base,
    "R-08": _pdptrs_without_pae,
}
