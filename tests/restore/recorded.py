"""Sequences recorded on real kernels, and the model's state in the same form.

Each file holds what KVM answered to a few hundred restore sequences: the errno
of every ioctl and, after it, KVM_GET_NESTED_STATE, GET_SREGS, GET_REGS,
GET_DEBUGREGS and GET_VCPU_EVENTS (only what changed is stored).  In the guests
called ``-x`` L1 and L2 differ in nearly every register, so that a mix-up shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

from qemu_svm.restore.area import RESET, Area
from qemu_svm.restore.saved import Blob, Saved
from qemu_svm.restore.simulate import Snapshot
from qemu_svm.x86.segments import Segment

HERE = Path(__file__).parent
RECORDED = sorted(HERE.glob("recorded-*.jsonl.zst"))
RAM = 32 << 20
_DB = 0x400
_ATTRIB = 0x7FE  # GET_SREGS makes up G, and KVM sets the accessed bit


def backed(address: int, size: int) -> bool:
    """The recorded guests have 32 MiB."""
    return address + size <= RAM


@dataclass(frozen=True)
class Recording:
    """One sequence."""

    profile: str
    entry: dict[str, Any]


def _text(path: Path) -> str:
    return zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).decode()


def recordings(path: Path) -> Iterator[Recording]:
    """All sequences of a file."""
    head, *lines = _text(path).splitlines()
    profile = json.loads(head)["profile"]
    assert json.loads(head)["sequences"] == len(lines)
    for line in lines:
        yield Recording(profile, json.loads(line))


@cache
def guests() -> dict[str, Saved]:
    """What the recorded guests had, by name."""
    found = {}
    for name, entry in json.loads(_text(HERE / "guests.json.zst")).items():
        sregs = Area("sregs")
        for key, value in entry["sregs"].items():
            sregs.set(key, Segment(*value) if isinstance(value, list) else value, RESET)
        blob = dict(entry["blob"])
        blob["vmcb"] = bytes.fromhex(blob["vmcb"])
        found[name] = Saved(sregs, entry["regs"], entry["msrs"], entry["debugregs"], Blob(**blob))
    return found


def flat(state: Snapshot, *, split: bool) -> dict[str, Any]:
    """The model's state under the recording's names."""
    arch, vmcb01 = state.areas["arch"], state.areas["vmcb01"]
    current = state.areas["vmcb02"] if split and state.guest_mode else vmcb01
    found: dict[str, Any] = {f"nested.{k}": v for k, v in state.nested.items() if k != "format"}
    if state.guest_mode:
        control = state.areas["ctl_cache"]
        found |= {f"ctl.{name}": control.get(name) for name in control}
        l1 = vmcb01 if split else state.areas["hsave"]
        for name in ("es", "cs", "ss", "ds"):
            found[f"l1.{name}"] = _segment(l1.segment(name), 0xFFF)
        for name in ("gdtr", "idtr"):
            found[f"l1.{name}"] = [l1.segment(name).base, l1.segment(name).limit]
        for name in ("efer", "cr4", "cr3", "cr0", "rflags", "rip", "rsp", "rax", "cpl"):
            found[f"l1.{name}"] = l1.get(name)
    for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
        found[f"sregs.{name}"] = arch.get(name)
    for name in ("es", "cs", "ss", "ds"):
        found[f"sregs.{name}"] = _segment(current.segment(name), _ATTRIB)
    if not current.segment("ss").present:
        found["sregs.ss"][3] &= ~_DB  # svm_get_segment clears it
    for name in ("fs", "gs"):
        found[f"sregs.{name}"] = _segment(vmcb01.segment(name), _ATTRIB)
    for name in ("gdtr", "idtr"):
        table = current.segment(name)
        found[f"sregs.{name}"] = [table.base, table.limit & 0xFFFF]
    for name in arch:
        if name not in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer"):
            found[f"regs.{name}"] = arch.get(name)
    found["regs.rflags"] = current.get("rflags")
    found["smm"] = int(state.smm)
    found["shadow"] = state.shadow
    return found


def _segment(segment: Segment, mask: int) -> list[int]:
    return [segment.selector, segment.base, segment.limit, segment.attrib & mask]


def comparable(name: str, value: Any) -> Any:
    """A recorded value without what KVM makes up on GET."""
    if isinstance(value, list) and len(value) == 4:
        mask = 0xFFF if name.startswith("l1.") else _ATTRIB
        return [*value[:3], value[3] & mask]
    return value
