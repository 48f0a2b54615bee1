"""Sequences recorded on real kernels.

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
from qemu_svm.x86.segments import Segment

HERE = Path(__file__).parent
RECORDED = sorted(HERE.glob("recorded-*.jsonl.zst"))
RAM = 32 << 20


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
