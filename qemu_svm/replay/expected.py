"""What QEMU puts of a stream: the arguments of its KVM_SET_* ioctls.

Values that a stream does not have by name are not among them; of those that a structure must
have, the names are in :attr:`~qemu_svm.findings.puts.PutCall.unknown`.

Source: QEMU ``target/i386/kvm/kvm.c`` (kvm_put_msrs, kvm_put_vcpu_events), ``machine.c``, 7.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qemu_svm.findings.puts import PutCall, PutComparison, calls_of, compare_puts
from qemu_svm.kvm import layouts
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.model.plans import parse
from qemu_svm.model.saved import from_vcpu
from qemu_svm.replay.encode import Encoder
from qemu_svm.replay.extras import extras
from qemu_svm.stream.vmstate.values import Value
from qemu_svm.x86.cpuid import HOST_CPUID

_STEPS = "lapic,sregs,nested,regs,xsave,xcrs,msrs,debugregs,mpstate"
_UNKNOWN = {
    "SREGS": frozenset(
        {"cr8", "apic_base", *(f"interrupt_bitmap[{number}]" for number in range(4))}
    ),
    "XCRS": frozenset({"nr_xcrs"}),
}
_FIXED = (0x250, 0x258, 0x259, *range(0x268, 0x270))
_MSRS = {
    "env.tsc": 0x10,
    "env.tsc_aux": 0xC000_0103,
    "env.system_time_msr": 0x12,
    "env.wall_clock_msr": 0x11,
    "env.mtrr_deftype": 0x2FF,
    "env.mcg_status": 0x17A,
    "env.smbase": 0x9E,
    "cpu/msr_smi_count/env.msr_smi_count": 0x34,
}
"""MSRs that QEMU puts besides those of the model, by their field in the vCPU's section."""


def expected(machine: Machine, vcpu: Vcpu) -> tuple[PutCall, ...]:
    """Return what QEMU puts of a vCPU of a stream, as far as the stream has it."""
    encoder = Encoder(from_vcpu(vcpu), [], HOST_CPUID, seconds=0, vcpu=vcpu.index,
                      extras=extras(machine, vcpu))  # fmt: skip
    found = []
    for step in parse(_STEPS):
        for operation in encoder.operations(step):
            name = operation["ioctl"].removeprefix("SET_")
            data = bytes.fromhex(operation["data"])
            found.append(PutCall(name, data, unknown=_UNKNOWN.get(name, frozenset())))
    more = dict(_more_msrs(vcpu.section))
    if more:
        found.append(PutCall("MSRS", layouts.pack_msrs(list(more.items()))))
    events = _events(vcpu.section)
    if events is not None:
        found.append(events)
    return tuple(found)


def compare_recorded(a: Machine, b: Machine) -> tuple[PutComparison, ...]:
    """Compare the puts of recordings with each other, or with what QEMU puts of a stream.

    Nothing, unless one of them is a recording and the other a recording or a stream.
    """
    others = {vcpu.index: vcpu for vcpu in b.vcpus}
    pairs = [(one, others[one.index]) for one in a.vcpus if one.index in others]
    return tuple(
        compare_puts(
            one.index,
            _calls(a, one),
            _calls(b, other),
            (_label(one), _label(other)),
            order=one.put is not None and other.put is not None,
            unread=(_unread(one), _unread(other)),
        )
        for one, other in pairs
        if (one.put or other.put) and _can(one) and _can(other)
    )


def _unread(vcpu: Vcpu) -> tuple[str, ...]:
    return () if vcpu.put is None else vcpu.put.lacking


def _can(vcpu: Vcpu) -> bool:
    return vcpu.put is not None or vcpu.section.child("env.eip") is not None


def _calls(machine: Machine, vcpu: Vcpu) -> tuple[PutCall, ...]:
    return expected(machine, vcpu) if vcpu.put is None else calls_of(vcpu.put)


def _label(vcpu: Vcpu) -> str:
    return "what QEMU puts of the stream" if vcpu.put is None else vcpu.put.label


def _more_msrs(section: Value) -> Iterator[tuple[int, int]]:
    for path, number in _MSRS.items():
        value = _at(section, path)
        if isinstance(value, int):
            yield number, value & (1 << 64) - 1
    fixed = _at(section, "env.mtrr_fixed")
    if isinstance(fixed, tuple):
        yield from zip(_FIXED, fixed, strict=False)
    banks = _at(section, "env.mce_banks")
    if isinstance(banks, tuple) and _at(section, "env.mcg_cap"):
        count = 4 * (section.number("env.mcg_cap") & 0xFF)
        yield from ((0x400 + at, value) for at, value in enumerate(banks[:count]))


def _at(section: Value, path: str) -> object:
    found: Value | None = section
    *groups, last = path.rsplit("/", 1)
    for name in (*groups, last):
        found = None if found is None else found.child(name)
    return None if found is None else found.value


def _events(section: Value) -> PutCall | None:
    # What KVM takes of them with the flags that QEMU sets.
    if section.child("env.exception_nr") is None:
        return None
    exception, interrupt = (
        section.number("env.exception_nr"),
        section.number("env.interrupt_injected"),
    )
    values: Mapping[str, int] = {
        "exc_injected": int(exception >= 0),
        "exc_nr": max(exception, 0) & 0xFF,
        "exc_has_err": section.number("env.has_error_code") & 0xFF,
        "int_injected": int(interrupt >= 0),
        "int_nr": max(interrupt, 0) & 0xFF,
        "int_soft": section.number("env.soft_interrupt") & 0xFF,
        "nmi_injected": section.number("env.nmi_injected") & 0xFF,
        "nmi_pending": section.number("env.nmi_pending") & 0xFF,
        "flags": 1 | 4 | 8,
        "shadow": section.number("env.hflags") >> 3 & 1,
        "smm": section.number("env.hflags") >> 19 & 1,
    }
    unknown = frozenset({"flags", "exc_err", "smm_pending", "smm_inside_nmi", "latched_init"})
    return PutCall(
        "VCPU_EVENTS", layouts.VCPU_EVENTS.pack(values), unknown=unknown | {"nmi_masked"}
    )
