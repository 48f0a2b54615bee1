"""The part of a guest's CPUID that KVM's checks depend on.

A stream does not contain CPUID: the destination sets it from its command line.
The default is that of a guest on an EPYC-like host with ``+svm``.

Source: Linux ``arch/x86/kvm/cpuid.c``, ``arch/x86/kvm/x86.h``
(``__cr4_reserved_bits``), ``arch/x86/kvm/svm/svm.c`` (``svm_set_cpu_caps``).
"""

from __future__ import annotations

from dataclasses import dataclass

from qemu_svm.x86.registers import CR4, EFER

_ALWAYS_CR4 = CR4.mask(
    *("VME", "PVI", "TSD", "DE", "PSE", "PAE", "MCE", "PGE", "PCE", "OSFXSR", "OSXMMEXCPT")
)
_CR4_FEATURES = {
    "umip": "UMIP",
    "la57": "LA57",
    "fsgsbase": "FSGSBASE",
    "pcid": "PCIDE",
    "xsave": "OSXSAVE",
    "smep": "SMEP",
    "smap": "SMAP",
    "pku": "PKE",
    "shstk": "CET",
    "vmx": "VMXE",
}
FEATURES = frozenset(_CR4_FEATURES) | {
    *("svm", "npt", "lm", "nx", "fxsr_opt", "invpcid", "rdtscp", "skinit", "rdpru", "vgif"),
    *("nrips", "sev_es", "gmet", "autoibrs", "x2apic", "tscratemsr"),
}
_DEFAULT = frozenset(
    {"fsgsbase", "xsave", "smep", "smap", "svm", "npt", "lm", "nx", "rdtscp", "vgif", "x2apic"}
)
UNSET_MAXPHYADDR = 36
"""What KVM assumes until CPUID is set (``cpuid_query_maxphyaddr``)."""


@dataclass(frozen=True, slots=True)
class Cpuid:
    """``features`` by their Linux names in lower case; ``maxphyaddr`` in bits."""

    features: frozenset[str] = _DEFAULT
    maxphyaddr: int = 40

    def has(self, name: str) -> bool:
        """Whether the guest has a feature."""
        return name in self.features

    def without(self, *names: str) -> Cpuid:
        """Return the same CPUID without some features."""
        return Cpuid(self.features - set(names), self.maxphyaddr)


NONE = Cpuid(frozenset(), UNSET_MAXPHYADDR)
"""A vCPU whose CPUID has not been set."""


_COMMON = frozenset({"umip", "fsgsbase", "xsave", "smep", "smap", "pku"})
"""CR4 features that L1 may use although L2 does not."""


def infer(l2_cr4: int, l1_cr4: int, l2_efer: int, maxphyaddr: int = 40) -> Cpuid:
    """Return the CPUID that a saved vCPU must have had, since its kernel ran it.

    The features that L2's registers use were allowed.  L1's registers are what the checks
    of the blob are about, so only common features are derived from them.  40 bits are
    QEMU's default.
    """
    features = set(_DEFAULT)
    for feature, bit in _CR4_FEATURES.items():
        mask = CR4.mask(bit)
        if feature != "vmx" and (l2_cr4 & mask or (feature in _COMMON and l1_cr4 & mask)):
            features.add(feature)
    for feature, bit in (("fxsr_opt", "FFXSR"), ("autoibrs", "AIBRSE")):
        if l2_efer & EFER.mask(bit):
            features.add(feature)
    return Cpuid(frozenset(features), maxphyaddr)


def is_legal_gpa(cpuid: Cpuid, address: int) -> bool:
    """``kvm_vcpu_is_legal_gpa``: no bit at or above MAXPHYADDR."""
    return address >> cpuid.maxphyaddr == 0


def page_address_valid(cpuid: Cpuid, address: int) -> bool:
    """``page_address_valid``: page aligned and legal."""
    return address & 0xFFF == 0 and is_legal_gpa(cpuid, address)


def cr4_reserved(cpuid: Cpuid) -> int:
    """Return the bits of CR4 that the guest must not set (``__cr4_reserved_bits``)."""
    allowed = _ALWAYS_CR4
    for feature, bit in _CR4_FEATURES.items():
        if cpuid.has(feature):
            allowed |= CR4.mask(bit)
    return (1 << 64) - 1 & ~allowed


HOST_EFER = EFER.mask("SCE", "LME", "LMA", "NX", "SVME", "LMSLE")
"""Bits of EFER that kvm-amd with nested SVM enables on every host."""

HOST_CPUID = Cpuid()
"""Features of the host, which a guest cannot exceed."""


def efer_reserved(host: Cpuid) -> int:
    """``efer_reserved_bits`` of a host."""
    allowed = HOST_EFER
    if host.has("fxsr_opt"):
        allowed |= EFER.mask("FFXSR")
    if host.has("autoibrs"):
        allowed |= EFER.mask("AIBRSE")
    return (1 << 64) - 1 & ~allowed


def valid_efer(host: Cpuid, cpuid: Cpuid, efer: int) -> bool:
    """``kvm_valid_efer``: no reserved bit, and every feature in the guest's CPUID."""
    if efer & efer_reserved(host):
        return False
    needs = (("FFXSR", "fxsr_opt"), ("SVME", "svm"), ("LME", "lm"), ("LMA", "lm"), ("NX", "nx"))
    return all(cpuid.has(f) for bit, f in needs if efer & EFER.mask(bit))
