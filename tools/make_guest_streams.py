"""Capture every guest in one box and describe the captures in streams/guests.

    .venv/bin/python tools/make_guest_streams.py --kernel 6.12

Files are named by QEMU, kernel and guest; guests.json has the origin and the required
content of each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import zstandard

from qemu_svm.lab import Box
from qemu_svm.lab.capture import Capture, capture
from qemu_svm.lab.guests import GUESTS, Guest, Image, assemble, values
from qemu_svm.lab.suites.catalogue import of_kernel
from qemu_svm.lab.vm import Settings, running

FOLDER = Path(__file__).resolve().parent.parent / "streams" / "guests"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", default="6.12")
    parser.add_argument("guests", nargs="*", default=list(GUESTS))
    chosen = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    record = FOLDER / "guests.json"
    known = json.loads(record.read_text())["streams"] if record.exists() else []
    entries = {entry["file"]: entry for entry in known}
    with Box(kernel=chosen.kernel) as box:
        for name in chosen.guests:
            entry = _capture(box, GUESTS[name], chosen.kernel)
            entries[entry["file"]] = entry
            print(entry["file"], entry["compressed"], "bytes")
    document = {
        "schema_version": 1,
        "about": "Captures of the guests of qemu_svm/lab/guests, made by"
        " tools/make_guest_streams.py; the facts are those that the guests are made to show.",
        "streams": [entries[name] for name in sorted(entries)],
    }
    record.write_text(json.dumps(document, indent=1) + "\n")


def _capture(box: Box, guest: Guest, kernel: str) -> dict[str, Any]:
    image = assemble(guest)
    settings = Settings(smp=len(guest.vcpus))
    with running(box, settings, image=image.data) as vm:
        taken = capture(vm, guest, image)
    data = taken.path.read_bytes()
    taken.path.unlink()
    suite = of_kernel(kernel)
    name = f"qemu{suite.qemu}-linux{suite.kernel}-{guest.name}.mig.zst"
    compressed = zstandard.ZstdCompressor(19).compress(data)
    (FOLDER / name).write_bytes(compressed)
    return {
        "file": name,
        "guest": guest.name,
        "versions": box.versions,
        "size": len(data),
        "compressed": len(compressed),
        "sha256": hashlib.sha256(data).hexdigest(),
        "vcpus": [_facts(guest, image, taken, index) for index in range(len(guest.vcpus))],
    }


def _facts(guest: Guest, image: Image, taken: Capture, index: int) -> dict[str, Any]:
    state, flags = guest.vcpus[index], taken.flags[index]
    facts: dict[str, Any] = {
        "guest_mode": state.guest_mode,
        "gif": state.gif,
        "smm": state.smm,
        "flags": None if flags is None else hex(flags),
    }
    if state.smm:
        return facts
    l2 = values.l2(guest.mode, nested_paging=guest.nested_paging)
    mine = l2 if state.guest_mode else values.L1
    facts["registers"] = {name: hex(mine[name]) for name in ("rbx", "rsp", "cr3", "efer", "lstar")}
    if state.guest_mode:
        facts["l1_save"] = {
            **{name: hex(values.L1[name]) for name in ("efer", "cr0", "cr3", "cr4")},
            "rip": hex(image.symbols["after_vmrun"]),
            "rsp": hex(guest.l1_rsp),
            "rax": hex(values.ADDRESSES["VMCB12"]),
        }
    return facts


if __name__ == "__main__":
    main()
