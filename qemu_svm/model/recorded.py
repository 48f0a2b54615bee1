"""A recorded put as a plan: each step has the bytes that KVM was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from qemu_svm.machine import Vcpu
from qemu_svm.machine.recorded import Given, RecordedPut
from qemu_svm.model.partial import can_run
from qemu_svm.model.plans import Step

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
_NUMBERS = ("SET_TSC_KHZ", "SMI")


def steps_of(vcpu: Vcpu) -> tuple[Step, ...]:
    """Return the steps of a recorded put; none if the vCPU has none.

    A put without CPUID begins with the step ``cpuid`` if it was recorded late; a run
    follows unless the vCPU is known not to have run, or has no registers.
    """
    put = vcpu.put
    if put is None:
        return ()
    steps = tuple(_steps(put))
    if not put.created and not any(step.name == "cpuid" for step in steps):
        steps = (Step("cpuid", text="cpuid"), *steps)
    runs = put.ran is not False and can_run(vcpu)
    return (*steps, Step("run", text="run")) if runs else steps


def record_of(step: Step) -> int:
    """Return the number of the record that a step of :func:`steps_of` is from; 0 for none."""
    _, at, record = step.text.partition("@")
    return int(record) if at and step.data is not None else 0


def _steps(put: RecordedPut) -> Iterator[Step]:
    for call in put.calls:
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
    return tuple(call for call in put.calls if not call.data and call.name not in _NUMBERS)
