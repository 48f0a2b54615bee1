"""Sequences recorded on real kernels.

Each file holds what KVM answered to a few hundred restore sequences: the errno
of every ioctl and, after it, KVM_GET_NESTED_STATE, GET_SREGS, GET_REGS,
GET_DEBUGREGS and GET_VCPU_EVENTS (only what changed is stored).  In the guests
called ``-x`` L1 and L2 differ in nearly every register, so that a mix-up shows.

``edges-*`` are in the same form, but made by another program (in C, with guests of
its own, which the file describes): header, blob, SREGS, MSRs, events and MP states at
their edges, with and without an APIC in the kernel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import zstandard

from qemu_svm.model.area import RESET, Area
from qemu_svm.model.saved import Saved
from qemu_svm.nested import NestedState
from qemu_svm.x86.segments import Segment

HERE = Path(__file__).parent
RECORDED = sorted(HERE.glob("recorded-*.jsonl.zst"))
EDGES = sorted(HERE.glob("edges-*.jsonl.zst"))
RAM = 32 << 20


def backed(address: int, size: int) -> bool:
    """The recorded guests have 32 MiB."""
    return address + size <= RAM


@dataclass(frozen=True)
class Recording:
    """One sequence."""

    profile: str
    entry: dict[str, Any]
    saved: Saved


def _text(path: Path) -> str:
    return zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes()).decode()


def recordings(path: Path) -> Iterator[Recording]:
    """All sequences of a file."""
    first, *lines = _text(path).splitlines()
    head = json.loads(first)
    assert head["sequences"] == len(lines)
    known = _guests(head["guests"]) if "guests" in head else guests()
    for line in lines:
        entry = json.loads(line)
        yield Recording(head["profile"], entry, known[entry["guest"]])


@cache
def guests() -> dict[str, Saved]:
    """What the recorded guests had, by name."""
    return _guests(json.loads(_text(HERE / "guests.json.zst")))


def _guests(described: dict[str, Any]) -> dict[str, Saved]:
    found = {}
    for name, entry in described.items():
        sregs = Area("sregs")
        for key, value in entry["sregs"].items():
            sregs.set(key, Segment(*value) if isinstance(value, list) else value, RESET)
        blob = dict(entry["blob"])
        blob["vmcb"] = bytes.fromhex(blob["vmcb"])
        nested = NestedState(**blob)
        found[name] = Saved(sregs, entry["regs"], entry["msrs"], entry["debugregs"], nested)
    return found
