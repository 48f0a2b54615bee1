"""Leaves out of records what is the host's, so that a log can be given away."""

from __future__ import annotations

from dataclasses import replace

from qemu_svm.kvm.numbers import keyed_by_number
from qemu_svm.recorder.log import CALL, NO_DATA, Record

_ADDRESSES = {
    "SET_USER_MEMORY_REGION": ((24, 8),),
    "SET_USER_MEMORY_REGION2": ((24, 8),),
    "SET_DEVICE_ATTR": ((16, 8),),
    "GET_DEVICE_ATTR": ((16, 8),),
    "SET_ONE_REG": ((8, 8),),
    "GET_ONE_REG": ((8, 8),),
    "GET_DIRTY_LOG": ((8, 8),),
    "X86_SET_MSR_FILTER": tuple((8 + 24 * range_ + 16, 8) for range_ in range(16)),
    "XEN_HVM_CONFIG": ((8, 16),),
    "MEMORY_ENCRYPT_REG_REGION": ((0, 8),),
    "MEMORY_ENCRYPT_UNREG_REGION": ((0, 8),),
}
"""Offset and size of addresses in the VMM's memory, by ioctl."""

_KEPT_MSRS = frozenset((0xC000_0080, 0xC001_0114, 0xC001_0117))
"""EFER, VM_CR and VM_HSAVE_PA, without which a restore cannot be judged."""

_SREGS2_FLAGS, _SREGS2_PDPTRS = 0x118, 0x120


_PLACES = keyed_by_number(_ADDRESSES)
_SREGS2 = (0x8140_AECC, 0x4140_AECD)
_MSRS = (0xC008_AE88, 0x4008_AE89)
_IRQCHIPS = (0xC208_AE62, 0x8208_AE63)
_CHIP_SIZES = {0: 16, 1: 16, 2: 216}
"""Bytes of the PICs and of the I/O APIC; a VMM writes no others of the 512."""


def redacted(record: Record) -> Record:
    """Return a record without addresses of the VMM, its uninitialised bytes, and MSRs.

    Of MSRs only the numbers stay, and the values of EFER, VM_CR and VM_HSAVE_PA.  State of the
    guest (registers, nested state, FPU, local APIC) stays.
    """
    if record.kind not in (CALL, NO_DATA):
        return record
    has_data = bool(record.data_in or record.data_out)
    return replace(
        record,
        # With data it is their address; else it may be one.
        argument=0 if has_data or record.argument >> 32 else record.argument,
        data_in=_masked(record.number, record.data_in),
        data_out=_masked(record.number, record.data_out),
    )


def _masked(number: int, data: bytes) -> bytes:
    places = list(_PLACES.get(number, ()))
    if number in _SREGS2 and not data[_SREGS2_FLAGS : _SREGS2_FLAGS + 1].strip(b"\0"):
        places.append((_SREGS2_PDPTRS, 32))
    elif number in _MSRS:
        places += (
            (start + 8, 8)
            for start in range(8, len(data) - 15, 16)
            if int.from_bytes(data[start : start + 4], "little") not in _KEPT_MSRS
        )
    elif number in _IRQCHIPS and data:
        start = 8 + _CHIP_SIZES.get(data[0], 512)
        places.append((start, len(data) - start))
    if not places:
        return data
    masked = bytearray(data)
    for start, size in places:
        if start + size <= len(masked):
            masked[start : start + size] = bytes(size)
    return bytes(masked)
