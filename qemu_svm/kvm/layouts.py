"""The structures of KVM's ioctls, as data: name, offset, format.

One table serves both directions, bytes to values and values to bytes.  A field's
format is that of :mod:`struct` (little-endian); ``4Q`` is a list of four.
Bytes outside of all fields are zero when built and ignored when read.

Source: Linux ``arch/x86/include/uapi/asm/kvm.h``, ``include/uapi/linux/kvm.h``
(6.1, 7.2), checked against the size field of the ioctls' numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Field:
    """A member: offset in bytes, format as in :mod:`struct`."""

    name: str
    offset: int
    format: str

    @property
    def size(self) -> int:
        """Size in bytes."""
        return struct.calcsize("<" + self.format)

    @property
    def many(self) -> bool:
        """Whether the value is a list."""
        return len(self.format) > 1


@dataclass(frozen=True)
class Layout:
    """A structure: its fields, and its size in bytes."""

    name: str
    size: int
    fields: tuple[Field, ...]

    def unpack(self, data: bytes | bytearray | memoryview) -> dict[str, Any]:
        """Return the values by name, from the first ``size`` bytes.

        :raises ValueError: there are fewer bytes.
        """
        if len(data) < self.size:
            raise ValueError(f"{self.name} has {self.size} bytes, not {len(data)}")
        found: dict[str, Any] = {}
        for field in self.fields:
            values = struct.unpack_from("<" + field.format, data, field.offset)
            found[field.name] = list(values) if field.many else values[0]
        return found

    def pack(self, values: Mapping[str, Any]) -> bytes:
        """Return the bytes of the structure; fields without a value are zero.

        :raises ValueError: there is no field of that name, or a value does not fit its field.
        """
        made = bytearray(self.size)
        known = {field.name: field for field in self.fields}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"{self.name} has no field '{name}'")
            field = known[name]
            try:
                struct.pack_into(
                    "<" + field.format, made, field.offset, *(value if field.many else (value,))
                )
            except struct.error as error:
                raise ValueError(f"{self.name}.{name} cannot hold {value!r}: {error}") from None
        return bytes(made)


def _layout(name: str, size: int, *fields: tuple[str, int, str]) -> Layout:
    return Layout(name, size, tuple(Field(*field) for field in fields))


def _row(start: int, step: int, format_: str, names: Sequence[str]) -> list[tuple[str, int, str]]:
    return [(name, start + step * index, format_) for index, name in enumerate(names)]


_SEGMENT = (
    *(("base", 0, "Q"), ("limit", 8, "I"), ("selector", 12, "H"), ("type", 14, "B")),
    *(("present", 15, "B"), ("dpl", 16, "B"), ("db", 17, "B"), ("s", 18, "B")),
    *(("l", 19, "B"), ("g", 20, "B"), ("avl", 21, "B"), ("unusable", 22, "B")),
)
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
TABLES = ("gdt", "idt")
GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *(f"r{number}" for number in range(8, 16)),
    *("rip", "rflags"),
)

_SREGS = (
    *(
        (f"{name}.{part}", 24 * index + offset, format_)
        for index, name in enumerate(SEGMENTS)
        for part, offset, format_ in _SEGMENT
    ),
    *(
        (f"{name}.{part}", 192 + 16 * index + offset, format_)
        for index, name in enumerate(TABLES)
        for part, offset, format_ in (("base", 0, "Q"), ("limit", 8, "H"))
    ),
    *_row(224, 8, "Q", ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
)

MEMORY_REGION = _layout(
    "kvm_userspace_memory_region",
    32,
    *(("slot", 0, "I"), ("flags", 4, "I"), ("guest_phys_addr", 8, "Q")),
    *(("memory_size", 16, "Q"), ("userspace_addr", 24, "Q")),
)
REGS = _layout("kvm_regs", 144, *_row(0, 8, "Q", GENERAL))
SREGS = _layout("kvm_sregs", 312, *_SREGS, ("interrupt_bitmap", 280, "4Q"))
SREGS2 = _layout("kvm_sregs2", 320, *_SREGS, ("flags", 280, "Q"), ("pdptrs", 288, "4Q"))
DEBUGREGS = _layout(
    "kvm_debugregs",
    128,
    *_row(0, 8, "Q", ("dr0", "dr1", "dr2", "dr3", "dr6", "dr7", "flags")),
)
MP_STATE = _layout("kvm_mp_state", 4, ("mp_state", 0, "I"))
VCPU_EVENTS = _layout(
    "kvm_vcpu_events",
    64,
    *_row(0, 1, "B", ("exc_injected", "exc_nr", "exc_has_err", "exc_pending")),
    ("exc_err", 4, "I"),
    *_row(8, 1, "B", ("int_injected", "int_nr", "int_soft", "shadow")),
    *_row(12, 1, "B", ("nmi_injected", "nmi_pending", "nmi_masked")),
    *(("sipi", 16, "I"), ("flags", 20, "I")),
    *_row(24, 1, "B", ("smm", "smm_pending", "smm_inside_nmi", "latched_init")),
    *(("triple_fault", 28, "B"), ("exc_has_payload", 55, "B"), ("exc_payload", 56, "Q")),
)
XCRS = _layout("kvm_xcrs", 392, ("nr_xcrs", 0, "I"), ("flags", 4, "I"), ("xcrs", 8, "32Q"))
"""Each of the 16 entries is a register number, and its value in the second 8 bytes."""
XSAVE = _layout("kvm_xsave", 4096, ("region", 0, "1024I"))
FPU = _layout("kvm_fpu", 416, ("fcw", 128, "H"), ("fsw", 130, "H"), ("mxcsr", 408, "I"))
LAPIC = _layout("kvm_lapic_state", 1024, ("regs", 0, "256I"))
ENABLE_CAP = _layout("kvm_enable_cap", 104, ("cap", 0, "I"), ("flags", 4, "I"), ("args", 8, "4Q"))
NESTED_STATE = _layout(
    "kvm_nested_state",
    128,
    *(("flags", 0, "H"), ("format", 2, "H"), ("size", 4, "I")),
    *(("vmcb_pa", 8, "Q"), ("gpat", 16, "Q")),
)
"""The header; 4096 bytes of VMCB follow it."""
CPUID2 = _layout("kvm_cpuid2", 8, ("nent", 0, "I"))
CPUID_ENTRY = _layout(
    "kvm_cpuid_entry2",
    40,
    *_row(0, 4, "I", ("function", "index", "flags", "eax", "ebx", "ecx", "edx")),
)
MSRS = _layout("kvm_msrs", 8, ("nmsrs", 0, "I"))
MSR_ENTRY = _layout("kvm_msr_entry", 16, ("index", 0, "I"), ("data", 8, "Q"))
RUN = _layout(
    "kvm_run",
    64,
    *(("request_interrupt_window", 0, "B"), ("immediate_exit", 1, "B")),
    *(("exit_reason", 8, "I"), ("ready", 12, "B"), ("if_flag", 13, "B"), ("flags", 14, "H")),
    *(("cr8", 16, "Q"), ("apic_base", 24, "Q")),
)
"""The start of the shared page, before the union at offset 32."""

ARGUMENTS = {
    "REGS": REGS,
    "SREGS": SREGS,
    "SREGS2": SREGS2,
    "DEBUGREGS": DEBUGREGS,
    "MP_STATE": MP_STATE,
    "VCPU_EVENTS": VCPU_EVENTS,
    "XCRS": XCRS,
    "XSAVE": XSAVE,
    "FPU": FPU,
    "LAPIC": LAPIC,
    "NESTED_STATE": NESTED_STATE,
    "CPUID2": CPUID2,
    "MSRS": MSRS,
    "ENABLE_CAP": ENABLE_CAP,
    "USER_MEMORY_REGION": MEMORY_REGION,
}
"""Layouts by the name that their ioctls have after ``GET_`` and ``SET_``."""

VMCB_SIZE = 4096
NESTED_STATE_SIZE = NESTED_STATE.size + VMCB_SIZE
"""Bytes of SVM's nested state: header and VMCB."""


def pack_list(
    head: Layout, count: str, entry: Layout, values: Sequence[Mapping[str, Any]]
) -> bytes:
    """Return the bytes of a header with the number of entries, and of the entries after it.

    :param count: the header's field for their number.
    """
    return head.pack({count: len(values)}) + b"".join(entry.pack(value) for value in values)


def unpack_list(
    head: Layout, count: str, entry: Layout, data: bytes | bytearray
) -> list[dict[str, Any]]:
    """Return the values of the entries after a header with their number.

    :param count: the header's field for their number.
    """
    number = head.unpack(data)[count]
    view = memoryview(data)[head.size :]
    return [entry.unpack(view[index * entry.size :]) for index in range(number)]


def pack_cpuid(entries: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the bytes of a ``kvm_cpuid2``."""
    return pack_list(CPUID2, "nent", CPUID_ENTRY, entries)


def unpack_cpuid(data: bytes | bytearray) -> list[dict[str, Any]]:
    """Return the entries of a ``kvm_cpuid2``."""
    return unpack_list(CPUID2, "nent", CPUID_ENTRY, data)


def pack_msrs(values: Sequence[tuple[int, int]]) -> bytes:
    """Return the bytes of a ``kvm_msrs``, from pairs of index and value."""
    entries = [{"index": index, "data": data} for index, data in values]
    return pack_list(MSRS, "nmsrs", MSR_ENTRY, entries)


def unpack_msrs(data: bytes | bytearray) -> dict[int, int]:
    """Return the values of a ``kvm_msrs`` by index."""
    return {one["index"]: one["data"] for one in unpack_list(MSRS, "nmsrs", MSR_ENTRY, data)}


def unpack_whole_msrs(data: bytes) -> dict[int, int]:
    """Return the values of a ``kvm_msrs`` that may be cut, or count more than it has."""
    there = max(len(data) - MSRS.size, 0) // MSR_ENTRY.size
    count = min(int.from_bytes(data[:4], "little"), there)
    return unpack_msrs(count.to_bytes(MSRS.size, "little") + data[MSRS.size :])
