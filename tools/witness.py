#!/usr/bin/env python3
"""Hold the captures of ``streams/`` against kernels: what is the processor given?

The first captures on every kernel, those of the lab's guests on the kernel that they
were saved on.  One box for each kernel and QEMU that is needed; a line for each
restore.  On each kernel two streams are restored in a wrong order as well, which must
be seen.  With names of kernels as arguments, only those.  Exit status 1 if anything is
wrong or was not foreseen by the model.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from qemu_svm.errors import SvmStreamError
from qemu_svm.lab.suites.catalogue import KERNELS, is_of_line, of_kernel
from qemu_svm.lab.witness import WitnessBox, qemu_for, witness_restore
from qemu_svm.machine import read_machine
from qemu_svm.render.text.witness_verdict import verdict
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream

STREAMS = Path(__file__).resolve().parent.parent / "streams"
SECONDS = 60.0
BY_IOCTLS = [f"qemu7.2-linux6.1-{guest}.mig.zst" for guest in ("nested", "nested-npt")]
WRONG = "cpuid,sregs:l1,nested,regs,msrs,run"
"""L1's registers for L2: accepted, and it must be seen that L2 runs with them."""


def captures(kernel: str) -> Iterator[tuple[str, str]]:
    """Streams for a kernel, each with the QEMU that is to load it."""
    for entry in json.loads((STREAMS / "manifest.json").read_text())["streams"]:
        if "resaved" not in entry["file"]:
            yield entry["file"], qemu_for(entry["provenance"]["machine"], kernel)
    for entry in json.loads((STREAMS / "guests" / "guests.json").read_text())["streams"]:
        if is_of_line(entry["versions"]["kernel"], kernel) and len(entry["vcpus"]) == 1:
            yield f"guests/{entry['file']}", of_kernel(kernel).qemu


def one(bench: WitnessBox, file: str, plan: str | None = None) -> bool:
    with open_source(str(STREAMS / file)) as source:
        found = witness_restore(bench, read_machine(read_stream(source)), plan, seconds=SECONDS)
    words = " ".join(str(line).strip() for line in verdict(found))
    how = "" if plan is None else " (wrong order)"
    print(f"    {file.removesuffix('.mig.zst') + how:46} {words}", flush=True)
    if plan is None:
        return found.clean
    return any(field.why == "L1's value" for field in found.wrong) and not found.refuted


def box(kernel: str, qemu: str, files: list[str]) -> bool:
    good = True
    with WitnessBox(kernel, qemu=qemu) as bench:
        versions = bench.box.versions
        print(f"Linux {versions['kernel']}, QEMU {versions['qemu']}", flush=True)
        for file in files:
            good = one(bench, file) and good
        if qemu == of_kernel(kernel).qemu:
            for file in BY_IOCTLS:
                good = one(bench, file, WRONG) and good
    return good


def main() -> int:
    good, start = True, time.monotonic()
    for kernel in sys.argv[1:] or KERNELS:
        boxes: dict[str, list[str]] = defaultdict(list)
        for file, qemu in captures(kernel):
            boxes[qemu].append(file)
        for qemu, files in boxes.items():
            try:
                good = box(kernel, qemu, files) and good
            except SvmStreamError as error:
                print(f"Linux {kernel}, QEMU {qemu}: {error}")
                good = False
    print(f"{'all right' if good else 'NOT all right'}, {time.monotonic() - start:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
