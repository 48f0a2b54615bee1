"""Which bytes at the argument of an ioctl are its payload.

An ioctl's number has the size of a structure, but some ioctls have a list behind it, and the
directions of a few numbers are wrong.

Source: Linux ``include/uapi/linux/kvm.h``, ``arch/x86/include/uapi/asm/kvm.h`` (6.1, 7.2),
``arch/x86/kvm/x86.c`` kvm_arch_vcpu_ioctl, ``virt/kvm/kvm_main.c`` kvm_vm_ioctl.
"""

from __future__ import annotations

from dataclasses import dataclass

from qemu_svm.recording.records import Ioctl


@dataclass(frozen=True, slots=True)
class Length:
    """The length of an argument: so many bytes, and so many for each entry.

    :param count: offset of the number of entries (32 bits).
    :param least: bytes in any case.
    """

    base: int
    entry: int
    count: int
    least: int = 0


_SET_IRQCHIP, _SET_PIT = 0x8208_AE63, 0x8048_AE66
_SET_NESTED_STATE, _HEADER = 0x4080_AEBF, 128
_NESTED = {0: _HEADER + 2 * 4096, 1: _HEADER + 4096}
_REG_REGION, _UNREG_REGION = 0x8010_AEBB, 0x8010_AEBC
INPUT = frozenset({_SET_IRQCHIP, _SET_PIT, _REG_REGION, _UNREG_REGION})
"""Numbers that say that the kernel writes the argument, although it only reads it."""

LENGTHS = {
    0xC080_AEBE: Length(0, 1, 4, 128),  # GET_NESTED_STATE
    _SET_NESTED_STATE: Length(0, 1, 4, 128),  # SET_NESTED_STATE
    0xC008_AE88: Length(8, 16, 0),  # GET_MSRS
    0x4008_AE89: Length(8, 16, 0),  # SET_MSRS
    0x4008_AE90: Length(8, 40, 0),  # SET_CPUID2
    0xC008_AE91: Length(8, 40, 0),  # GET_CPUID2
    0xC008_AE05: Length(8, 40, 0),  # GET_SUPPORTED_CPUID
    0xC008_AE09: Length(8, 40, 0),  # GET_EMULATED_CPUID
    0xC008_AEC1: Length(8, 40, 0),  # GET_SUPPORTED_HV_CPUID
    0xC004_AE02: Length(4, 4, 0),  # GET_MSR_INDEX_LIST
    0xC004_AE0A: Length(4, 4, 0),  # GET_MSR_FEATURE_INDEX_LIST
    0x4008_AE6A: Length(8, 48, 0),  # SET_GSI_ROUTING
    0x4004_AE8B: Length(4, 1, 0),  # SET_SIGNAL_MASK
}
"""Arguments that are longer than their number says."""


def length(nr: int, start: bytes) -> int:
    """Return how long the argument is.

    :param start: its first bytes, 8 or more.
    """
    known = LENGTHS.get(nr)
    if known is None:
        return nr >> 16 & 0x3FFF
    count = int.from_bytes(start[known.count : known.count + 4], "little")
    return max(known.base + known.entry * count, known.least)


def least(nr: int, start: bytes) -> int:
    """Return how much of the argument the kernel reads: of a nested state no more than it has.

    A VMM may give the size of its buffer; KVM takes the VMCB, or the two VMCS (Linux
    ``svm_set_nested_state``, ``vmx_set_nested_state``).

    :param start: as for :func:`length`.
    """
    found = length(nr, start)
    if nr != _SET_NESTED_STATE or len(start) < _HEADER:
        return found
    return min(found, _NESTED.get(int.from_bytes(start[2:4], "little"), _HEADER))


def given(call: Ioctl) -> bytes:
    """Return the bytes that the kernel was given, also where a recorder went by the number."""
    if call.nr in INPUT and not call.given:
        return call.returned
    return call.given


def returned(call: Ioctl) -> bytes:
    """Return the bytes that the kernel returned: none for an ioctl that returns none."""
    return b"" if call.nr in INPUT else call.returned


def complete(call: Ioctl) -> bool:
    """Return whether the whole argument is there that the kernel was given."""
    data = given(call)
    writes = call.nr >> 30 & 1 or call.nr in INPUT
    return not call.missing and (not writes or len(data) >= max(least(call.nr, data), 1))
