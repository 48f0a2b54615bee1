"""What a real KVM returns for a vCPU, as the flat state of :mod:`qemu_svm.model.observed`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qemu_svm.kvm import layouts
from qemu_svm.model.observed import (
    ARCH_MSRS,
    CONTROL_REGISTERS,
    L1_REGISTERS,
    L1_SEGMENTS,
    SHARED_REGISTERS,
    TABLES,
    Observed,
)
from qemu_svm.model.saved import areas
from qemu_svm.nested import bits
from qemu_svm.nested.groups import VMLOAD_MSRS, VMLOAD_SEGMENTS
from qemu_svm.x86.msrs import NUMBERS
from qemu_svm.x86.segments import from_kvm

WATCHED_MSRS = {NUMBERS[name]: name for name in (*VMLOAD_MSRS, *ARCH_MSRS)}
_NOT_STATE = frozenset({"flags"})


def observed(raw: Mapping[str, str]) -> Observed:
    """Decode what the agent read.

    :param raw: hexadecimal bytes by the ioctl's name after ``GET_``, or ``errno N``.
    """
    found: Observed = {}
    for name, decode in (
        ("NESTED_STATE", _nested),
        ("SREGS", _sregs),
        ("REGS", _regs),
        ("DEBUGREGS", _debugregs),
        ("MSRS", _msrs),
        ("VCPU_EVENTS", _events),
    ):
        text = raw.get(name)
        if text is None:
            continue
        if text.startswith("errno"):
            found[name.lower()] = text
        else:
            found |= decode(bytes.fromhex(text))
    return found


def _nested(data: bytes) -> Observed:
    header = layouts.NESTED_STATE.unpack(data)
    found = {f"nested.{name}": header[name] for name in ("flags", "size", "vmcb_pa")}
    if header["flags"] & bits.GUEST_MODE and len(data) >= layouts.NESTED_STATE_SIZE:
        found |= vmcb(data[layouts.NESTED_STATE.size :])
    return found


def vmcb(page: bytes) -> Observed:
    """Return ``ctl.*``, ``l1.*`` and ``shared.*`` of a VMCB page."""
    control, save = areas(page)
    found: dict[str, Any] = {f"ctl.{name}": control.get(name) for name in control}
    for whose, names in (("l1", L1_SEGMENTS), ("shared", VMLOAD_SEGMENTS)):
        for name in names:
            found[f"{whose}.{name}"] = save.segment(name).as_list()
    for name in TABLES:
        found[f"l1.{name}"] = [save.segment(name).base, save.segment(name).limit]
    found |= {f"shared.{name}": save.get(name) for name in SHARED_REGISTERS}
    return found | {f"l1.{name}": save.get(name) for name in L1_REGISTERS}


def _sregs(data: bytes) -> Observed:
    values = layouts.SREGS.unpack(data)
    found: Observed = {f"sregs.{name}": values[name] for name in CONTROL_REGISTERS}
    for name in layouts.SEGMENTS:
        place = {"ldt": "ldtr"}.get(name, name)
        prefix = f"{name}."
        parts = {key.removeprefix(prefix): values[key] for key in values if key.startswith(prefix)}
        found[f"sregs.{place}"] = from_kvm(parts).as_list()
    for name in layouts.TABLES:
        found[f"sregs.{name}r"] = [values[f"{name}.base"], values[f"{name}.limit"]]
    return found


def _regs(data: bytes) -> Observed:
    return {f"regs.{name}": value for name, value in layouts.REGS.unpack(data).items()}


def _debugregs(data: bytes) -> Observed:
    values = layouts.DEBUGREGS.unpack(data)
    return {f"regs.{name}": value for name, value in values.items() if name not in _NOT_STATE}


def _msrs(data: bytes) -> Observed:
    found = layouts.unpack_msrs(data)
    return {f"msr.{name}": found[index] for index, name in WATCHED_MSRS.items() if index in found}


def _events(data: bytes) -> Observed:
    values = layouts.VCPU_EVENTS.unpack(data)
    # AMD has one shadow for STI and MOV SS; KVM shows it as both.
    return {"smm": values["smm"], "shadow": int(values["shadow"] != 0)}
