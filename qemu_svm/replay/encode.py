"""The steps of a plan as operations of the agent: ioctls with concrete bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qemu_svm.errors import PlanError
from qemu_svm.kvm import layouts
from qemu_svm.model import arguments
from qemu_svm.model.area import Area
from qemu_svm.model.plans import Step
from qemu_svm.model.recorded import IOCTLS
from qemu_svm.model.saved import Saved
from qemu_svm.replay.extras import Extras
from qemu_svm.x86 import msrs
from qemu_svm.x86.cpuid import HOST_CPUID, Cpuid
from qemu_svm.x86.cpuid_entries import Entry, changed

Operation = dict[str, Any]

STOP_PORT = 0xEA
"""Port of the OUT that is placed at L1's RIP; no PC hardware uses it."""
APIC_BASE = 0xFEE0_0800
_BSP = 0x100
_PDPTRS_VALID = 1
_SEGMENTS = {"cs": "cs", "ds": "ds", "es": "es", "fs": "fs", "gs": "gs", "ss": "ss"} | {
    "tr": "tr",
    "ldt": "ldtr",
}
IMPOSSIBLE = {
    "vmrun": "it is an instruction of L1, not an ioctl",
    "smi": "SMM needs code of the guest's firmware",
    "rsm": "it is an instruction, not an ioctl",
}
"""Steps that only the model can perform, and why."""


class Encoder:
    """Encodes steps as operations of the agent.

    :param cpuid: entries of KVM_GET_SUPPORTED_CPUID.
    :param host: the same as features; the ``cpuid`` step starts from it.
    :param seconds: time limit of ``run``.
    :param extras: arguments of ``xsave``, ``xcrs`` and ``lapic``; without them these steps
        do nothing.
    :param emulated: the host is emulated; see :func:`qemu_svm.kvm.agent.perform`.
    :raises PlanError: a step or setting that a real KVM cannot be given.
    """

    def __init__(
        self,
        saved: Saved,
        cpuid: Sequence[Entry],
        host: Cpuid,
        *,
        seconds: float,
        vcpu: int = 0,
        emulated: bool = False,
        extras: Extras | None = None,
    ) -> None:
        self._saved = saved
        self._cpuid = cpuid
        self._host = host
        self._seconds = seconds
        self._emulated = emulated
        self._extras = extras or Extras()
        self._apic_base = APIC_BASE | (0 if vcpu else _BSP)
        self._steps: Mapping[str, Callable[[Step], list[Operation]]] = {
            "cpuid": self._cpuid_step,
            "sregs": self._sregs,
            "sregs2": self._sregs,
            "nested": self._nested,
            "get": self._get,
            "regs": self._regs,
            "msrs": self._msrs,
            "events": self._events,
            "debugregs": self._debugregs,
            "mpstate": self._mpstate,
            "xsave": self._extra,
            "xcrs": self._extra,
            "lapic": self._extra,
            "run": self._run,
        }

    def operations(self, step: Step) -> list[Operation]:
        """Return the operations of a step; none for a step without effect."""
        if step.data is not None and step.name not in IMPOSSIBLE:
            return _recorded(step)
        if step.name in IMPOSSIBLE:
            raise PlanError(f"'{step.name}' cannot be replayed: {IMPOSSIBLE[step.name]}")
        make = self._steps.get(step.name)
        return make(step) if make else []

    def _cpuid_step(self, step: Step) -> list[Operation]:
        entries = changed(self._cpuid, arguments.cpuid(self._host, step))
        return [_ioctl("SET_CPUID2", layouts.pack_cpuid(entries))]

    def _sregs(self, step: Step) -> list[Operation]:
        area = arguments.sregs(self._saved, step)
        values = sregs_values(area, self._apic_base)
        if step.name == "sregs":
            return [_ioctl("SET_SREGS", layouts.SREGS.pack(values))]
        pdptrs = [area.get(f"pdptr{number}") for number in range(4)]
        if "pdptr0" in area:
            values |= {"flags": _PDPTRS_VALID, "pdptrs": pdptrs}
        return [_ioctl("SET_SREGS2", layouts.SREGS2.pack(values))]

    def _nested(self, step: Step) -> list[Operation]:
        return [_ioctl("SET_NESTED_STATE", arguments.nested(self._saved, step).uapi())]

    def _get(self, step: Step) -> list[Operation]:
        # The buffer has room for everything: SVM writes all of it regardless of size.
        size = arguments.get_size(step)
        header = layouts.NESTED_STATE.pack({"size": size & 0xFFFF_FFFF})
        room = bytes(layouts.VMCB_SIZE)
        return [_ioctl("GET_NESTED_STATE", header + room) | {"back": layouts.NESTED_STATE.size}]

    def _regs(self, step: Step) -> list[Operation]:
        return [_ioctl("SET_REGS", layouts.REGS.pack(arguments.regs(self._saved, step)))]

    def _msrs(self, step: Step) -> list[Operation]:
        values = arguments.msrs(self._saved, step)
        pairs = [(msrs.NUMBERS[name], value) for name, value in values.items()]
        return [_ioctl("SET_MSRS", layouts.pack_msrs(pairs))]

    def _events(self, step: Step) -> list[Operation]:
        values = _fitting(layouts.VCPU_EVENTS, arguments.events(self._saved, step))
        return [_ioctl("SET_VCPU_EVENTS", layouts.VCPU_EVENTS.pack(values))]

    def _debugregs(self, step: Step) -> list[Operation]:
        values = arguments.debugregs(self._saved, step)
        return [_ioctl("SET_DEBUGREGS", layouts.DEBUGREGS.pack(values))]

    def _mpstate(self, step: Step) -> list[Operation]:
        state = arguments.mp_state(self._saved, step) & 0xFFFF_FFFF
        return [_ioctl("SET_MP_STATE", layouts.MP_STATE.pack({"mp_state": state}))]

    def _extra(self, step: Step) -> list[Operation]:
        data: bytes | None = getattr(self._extras, step.name)
        return [] if data is None else [_ioctl(f"SET_{step.name.upper()}", data)]

    def _run(self, _step: Step) -> list[Operation]:
        return [{"run": self._seconds, "stop_port": STOP_PORT, "emulated": self._emulated}]


def _recorded(step: Step) -> list[Operation]:
    # The bytes as they are.
    operation = _ioctl(IOCTLS[step.name], step.data or b"")
    numbers = dict(step.settings)
    return [operation | {"value": numbers["khz"]} if "khz" in numbers else operation]


def capabilities(numbers: Iterable[int]) -> list[Operation]:
    """Return the operations that enable capabilities of a VM."""
    return [
        _ioctl("ENABLE_CAP", layouts.ENABLE_CAP.pack({"cap": number, "args": [1, 0, 0, 0]}))
        | {"vm": True}
        for number in sorted(numbers)
    ]


def setup_mce(mcg_cap: int) -> list[Operation]:
    """Return the operation that gives a vCPU its machine check banks; none for 0."""
    return [_ioctl("X86_SETUP_MCE", mcg_cap.to_bytes(8, "little"))] if mcg_cap else []


def check(saved: Saved, steps: Sequence[Step]) -> None:
    """Check that a plan can be encoded, before anything is started.

    :raises PlanError: a step or setting that a real KVM cannot be given.
    """
    encoder = Encoder(saved, changed([], HOST_CPUID), HOST_CPUID, seconds=0)
    for step in steps:
        encoder.operations(step)


def _ioctl(name: str, data: bytes) -> Operation:
    return {"ioctl": name, "data": data.hex()}


def _fitting(layout: layouts.Layout, values: Mapping[str, int]) -> dict[str, int]:
    # As a C program would store them: the low bytes.
    sizes = {field.name: field.size for field in layout.fields}
    return {name: value & (1 << 8 * sizes[name]) - 1 for name, value in values.items()}


def sregs_values(area: Area, apic_base: int) -> dict[str, int | list[int]]:
    """Return ``kvm_sregs`` by field names."""
    values: dict[str, int] = {"apic_base": apic_base}
    for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"):
        if name in area:
            values[name] = area.get(name)
    for name, ours in _SEGMENTS.items():
        for part, value in area.segment(ours).kvm().items():
            values[f"{name}.{part}"] = value
    for name in layouts.TABLES:
        table = area.segment(f"{name}r")
        values |= {f"{name}.base": table.base, f"{name}.limit": table.limit}
    return dict(_fitting(layouts.SREGS, values))
