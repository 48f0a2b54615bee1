"""State of a vCPU that the model leaves out: x87, SSE, AVX, XCR0, the local APIC.

Source: QEMU ``target/i386/xsave_helper.c`` (``x86_cpu_xsave_all_areas``),
``target/i386/machine.c``, ``hw/i386/kvm/apic.c`` (``kvm_put_apic_state``), 7.2; AMD64 APM
volume 2, 11.5 (XSAVE area) and 16.3 (registers of the APIC).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qemu_svm.kvm import layouts
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.stream.vmstate.values import Value

_ALL_X87 = 1
_FXSAVE_MASK = 0xFFFF
_ST, _XMM, _HEADER, _YMM = 32, 160, 512, 576
_APIC_REGISTERS = {
    "tpr": 0x80,
    "spurious_vec": 0xF0,
    "esr": 0x280,
    "initial_count": 0x380,
    "divide_conf": 0x3E0,
}
_APIC_ARRAYS = {"isr": (0x100, 8), "tmr": (0x180, 8), "irr": (0x200, 8), "icr": (0x300, 2)} | {
    "lvt": (0x320, 6),
}


@dataclass(frozen=True, slots=True)
class Extras:
    """Arguments of KVM_SET_XSAVE, XCRS and LAPIC; None where the stream has nothing."""

    xsave: bytes | None = None
    xcrs: bytes | None = None
    lapic: bytes | None = None


def extras(machine: Machine, vcpu: Vcpu) -> Extras:
    """Return the extras of one vCPU of a stream."""
    section = vcpu.section
    if vcpu.parts is not None:
        return Extras(
            *(_bytes(machine, section.child(name)) for name in ("XSAVE", "XCRS", "LAPIC"))
        )
    xcr0 = vcpu.get("xcr0") or _ALL_X87
    return Extras(
        xsave=_xsave(section) if section.child("env.fpregs") is not None else None,
        xcrs=layouts.XCRS.pack({"nr_xcrs": 1, "xcrs": [0, xcr0, *[0] * 30]}),
        lapic=_lapic(machine, vcpu.index),
    )


def _bytes(machine: Machine, part: Value | None) -> bytes | None:
    return None if part is None else machine.stream.source.read_at(part.offset, part.size)


def _xsave(section: Value) -> bytes:
    area = bytearray(layouts.XSAVE.size)

    def put(offset: int, value: int, size: int) -> None:
        area[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    put(0, section.number("env.fpuc"), 2)
    put(2, section.number("env.fpus_vmstate"), 2)
    put(4, section.number("env.fptag_vmstate"), 1)
    put(24, section.number("env.mxcsr"), 4)
    put(28, _FXSAVE_MASK, 4)
    for number, register in enumerate(_elements(section, "env.fpregs")):
        numbers = _numbers(register)
        put(_ST + 16 * number, numbers.get("tmp_mant", 0), 8)
        put(_ST + 16 * number + 8, numbers.get("tmp_exp", 0), 2)
    for start, name in ((_XMM, "env.xmm_regs[0]"), (_YMM, "env.xmm_regs[1]")):
        for number, register in enumerate(_elements(section, name)):
            for half, value in enumerate(_numbers(register).values()):
                put(start + 16 * number + 8 * half, value, 8)
    put(_HEADER, section.number("env.xstate_bv", 3), 8)
    return bytes(area)


def _elements(section: Value, name: str) -> tuple[Value, ...]:
    found = section.child(name)
    return () if found is None else found.children


def _numbers(value: Value) -> Mapping[str, int]:
    return {node.name: node.value for _, node in value.walk() if isinstance(node.value, int)}


def _lapic(machine: Machine, index: int) -> bytes | None:
    for record in machine.stream.sections():
        if record.name == "apic" and record.instance_id == index:
            values = machine.stream.values(record)
            return None if values is None else _apic_page(values)
    return None


def _apic_page(values: Value) -> bytes:
    registers = [0] * (layouts.LAPIC.size // 4)
    registers[0x20 // 4] = values.number("id") << 24
    registers[0xD0 // 4] = values.number("log_dest") << 24
    registers[0xE0 // 4] = values.number("dest_mode") << 28 | 0x0FFF_FFFF
    for name, offset in _APIC_REGISTERS.items():
        registers[offset // 4] = values.number(name)
    for name, (offset, count) in _APIC_ARRAYS.items():
        node = values.child(name)
        array: Any = node.value if node is not None and isinstance(node.value, tuple) else ()
        for number, value in enumerate(array[:count]):
            registers[(offset + 16 * number) // 4] = value
    return layouts.LAPIC.pack({"regs": [value & 0xFFFF_FFFF for value in registers]})
