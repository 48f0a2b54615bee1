"""What a stream says that its restore must put, and what a recording shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qemu_svm.machine import Machine
from qemu_svm.model import plans
from qemu_svm.model.saved import from_vcpu
from qemu_svm.replay.encode import Encoder
from qemu_svm.x86.cpuid import HOST_CPUID
from qemu_svm.x86.cpuid_entries import changed

NUMBERS = {
    "nested": 0x4080AEBF,
    "sregs": 0x4138AE84,
    "sregs2": 0x4140AECD,
    "regs": 0x4090AE82,
    "debugregs": 0x4080AEA2,
}
_RUN = 0xAE80
_PDPTRS = 0x120
"""Offset in kvm_sregs2; QEMU puts bytes of its stack there."""


def recorded(path: Path) -> list[dict[str, Any]]:
    """The records of a recording in JSON lines."""
    _head, *records = map(json.loads, path.read_text().splitlines())
    return records


def restored(records: list[dict[str, Any]]) -> dict[str, bytes]:
    """The last put of each kind before a vCPU first runs in guest mode."""
    found: dict[str, bytes] = {}
    in_l2 = False
    for one in records:
        if "kind" in one:
            continue
        number = int(one["nr"], 16)
        if number == _RUN and in_l2:
            break
        for name, known in NUMBERS.items():
            if number == known:
                assert one["ret"] == 0, one
                found[name] = bytes.fromhex(one["in"])
        if number == NUMBERS["nested"]:
            in_l2 = bool(found["nested"][0] & 1)
    return _cut(found)


def _cut(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data[:_PDPTRS] if name == "sregs2" else data for name, data in found.items()}


def said(machine: Machine) -> dict[str, bytes]:
    """The same by the stream."""
    saved = from_vcpu(machine.vcpus[0])
    encoder = Encoder(saved, changed([], HOST_CPUID), HOST_CPUID, seconds=0)
    found = {}
    for step in plans.parse("nested,sregs2,regs,debugregs"):
        (operation,) = encoder.operations(step)
        found[step.name] = bytes.fromhex(operation["data"])
    return _cut(found)


def differences(machine: Machine, path: Path) -> list[str]:
    """What a recorded put does not have as its stream says; KVM_SET_SREGS stands for SREGS2."""
    put, wanted = restored(recorded(path)), said(machine)
    if "sregs2" not in put:
        # A kvm_sregs2 has flags where kvm_sregs has its bitmap of interrupts.
        put["sregs2"] = put.get("sregs", b"")[: len(wanted["sregs2"]) - 8].ljust(_PDPTRS, b"\0")
    return [name for name, data in wanted.items() if put.get(name) != data]
