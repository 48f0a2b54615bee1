"""A recorded put as a plan: each step has the bytes that KVM was given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from qemu_svm.kvm import layouts
from qemu_svm.machine import Vcpu
from qemu_svm.machine.recorded import Given, RecordedPut
from qemu_svm.model.partial import can_run
from qemu_svm.model.plans import Step
from qemu_svm.model.profile import Profile
from qemu_svm.x86.msrs import NUMBERS

PLAN = "recorded"
"""Name of the plan of a recorded put."""
IOCTLS: Mapping[str, str] = MappingProxyType(
    {
        "cpuid": "SET_CPUID2",
        "sregs": "SET_SREGS",
        "sregs2": "SET_SREGS2",
        "nested": "SET_NESTED_STATE",
        "regs": "SET_REGS",
        "msrs": "SET_MSRS",
        "events": "SET_VCPU_EVENTS",
        "debugregs": "SET_DEBUGREGS",
        "mpstate": "SET_MP_STATE",
        "lapic": "SET_LAPIC",
        "xsave": "SET_XSAVE",
        "xcrs": "SET_XCRS",
        "fpu": "SET_FPU",
        "tsc_khz": "SET_TSC_KHZ",
        "smi": "SMI",
    }
)
"""The ioctl of each step, without ``KVM_``."""
RAN = "ran"
"""Setting of a recorded ``cpuid``: the vCPU has run with it before the put."""
_STEPS = {ioctl: step for step, ioctl in IOCTLS.items()}
_FLAGS_END, _TRIPLE_FAULT = 24, 0x20
_KNOWN = frozenset(NUMBERS.values())
_NUMBERS = ("SET_TSC_KHZ", "SMI")


def steps_of(vcpu: Vcpu) -> tuple[Step, ...]:
    """Return the steps of a recorded put; none if the vCPU has none.

    First are those that give the vCPU what it had before.  Without CPUID the steps begin with
    ``cpuid`` if the put was recorded late; a run follows unless the vCPU is known not to have
    run, or has no registers.
    """
    put = vcpu.put
    if put is None:
        return ()
    carried = tuple(replace(step, carried=True) for step in _steps(map(_settable, put.before)))
    steps = (*carried, *_steps(put.calls))
    if not put.created and not any(step.name == "cpuid" for step in steps):
        steps = (Step("cpuid", text="cpuid", carried=bool(carried)), *steps)
    runs = put.ran is not False and can_run(vcpu)
    return (*steps, Step("run", text="run")) if runs else steps


def adapted(steps: Sequence[Step], kernel: Profile) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """Return recorded steps as a VMM makes them on a kernel that lacks something, and what.

    A VMM asks KVM first: for KVM_CAP_SREGS2, for the MSRs that there are, for the capability
    that a flag of KVM_SET_VCPU_EVENTS needs.
    """
    made: list[Step] = []
    lacking: list[str] = []
    for step in steps:
        one, words = _adapted(step, kernel)
        made.append(one)
        if words and words not in lacking:
            lacking.append(words)
    return tuple(made), tuple(lacking)


def _adapted(step: Step, kernel: Profile) -> tuple[Step, str]:
    data = step.data
    if data is None:
        return step, ""
    if step.name == "sregs2" and not kernel.has_sregs2:
        return replace(step, name="sregs", data=data[: layouts.SREGS.size]), "KVM_SET_SREGS2"
    if step.name == "events" and not kernel.triple_fault and len(data) >= _FLAGS_END:
        flags = int.from_bytes(data[_FLAGS_END - 4 : _FLAGS_END], "little")
        if flags & _TRIPLE_FAULT:
            left = (flags & ~_TRIPLE_FAULT).to_bytes(4, "little")
            data = data[: _FLAGS_END - 4] + left + data[_FLAGS_END:]
            return replace(step, data=data), "flag 0x20 of KVM_SET_VCPU_EVENTS"
    if step.name == "msrs":
        absent = {NUMBERS["tsc_ratio"]} if not kernel.tsc_ratio_msr else set()
        absent |= set() if kernel.base_msrs else {NUMBERS["fs_base"], NUMBERS["gs_base"]}
        values = layouts.unpack_whole_msrs(data)
        if absent & values.keys():
            kept = [one for one in values.items() if one[0] not in absent]
            names = ", ".join(f"{number:#x}" for number in sorted(absent & values.keys()))
            return replace(step, data=layouts.pack_msrs(kept)), f"MSR {names}"
    return step, ""


def _settable(call: Given) -> Given:
    # Of MSRs that were read, those that the model knows: not all can be written.
    if call.name != "SET_MSRS":
        return call
    values = layouts.unpack_whole_msrs(call.data)
    known = [one for one in values.items() if one[0] in _KNOWN]
    return replace(call, data=layouts.pack_msrs(known))


def record_of(step: Step) -> int:
    """Return the number of the record that a step of a put is from; 0 for none, or before it."""
    _, at, record = step.text.partition("@")
    return int(record) if at and step.data is not None and not step.carried else 0


def _steps(calls: Iterable[Given]) -> Iterator[Step]:
    for call in calls:
        name = _STEPS.get(call.name)
        if name is None or (not call.data and call.name not in _NUMBERS):
            continue
        settings: tuple[tuple[str, int], ...] = ()
        if name == "tsc_khz":
            settings = (("khz", call.argument),)
        elif call.ran:
            settings = ((RAN, 1),)
        yield Step(name, (), settings, f"{name}@{call.record}", call.data)


def unreadable(put: RecordedPut) -> tuple[Given, ...]:
    """Return the calls whose data the recorder could not read, so that no step has them."""
    return tuple(
        call
        for call in put.calls
        if not call.data and call.name not in _NUMBERS and call.errno is None
    )
