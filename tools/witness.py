#!/usr/bin/env python3
"""Hold every capture of ``streams/`` against every kernel: what is the processor given?

One box for each kernel and QEMU that is needed; a line for each restore.  On each
kernel two streams are restored in a wrong order as well, which must be seen.  With names
of kernels as arguments, only those.  Exit status 1 if anything is wrong or was not
foreseen by the model.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path

from qemu_svm.errors import SvmStreamError
from qemu_svm.lab.suites import KERNELS, of_kernel
from qemu_svm.lab.witness import WitnessBox, hear, qemu_for
from qemu_svm.machine import read_machine
from qemu_svm.render.witness_text import verdict
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream

STREAMS = Path(__file__).resolve().parent.parent / "streams"
SECONDS = 60.0
OWN = [f"qemu7.2-linux6.1-{guest}.mig.zst" for guest in ("nested", "nested-npt")]
"""Streams that are restored by ioctls, which any kernel takes."""


def captures() -> list[dict[str, str]]:
    """Captures that were saved first, not again after a restore."""
    entries = json.loads((STREAMS / "manifest.json").read_text())["streams"]
    return [
        {"file": entry["file"], "machine": entry["provenance"]["machine"]}
        for entry in entries
        if "resaved" not in entry["file"]
    ]


WRONG = "cpuid,sregs:l1,nested,regs,msrs,run"
"""L1's registers for L2: accepted, and it must be seen that L2 runs with them."""


def one(bench: WitnessBox, file: str, plan: str | None = None) -> bool:
    with open_source(str(STREAMS / file)) as source:
        found = hear(bench, read_machine(read_stream(source)), plan, seconds=SECONDS)
    words = " ".join(str(line).strip() for line in verdict(found))
    print(f"    {file.removesuffix('.mig.zst'):38} {words}", flush=True)
    if plan is None:
        return found.clean
    return any(field.why == "L1's value" for field in found.wrong) and not found.refuted


def main() -> int:
    kernels = sys.argv[1:] or list(KERNELS)
    good, start = True, time.monotonic()
    for kernel in kernels:
        boxes: dict[str, list[str]] = defaultdict(list)
        for capture in captures():
            boxes[qemu_for(capture["machine"], kernel)].append(capture["file"])
        for qemu, files in boxes.items():
            try:
                with WitnessBox(kernel, qemu=qemu) as bench:
                    versions = bench.box.versions
                    print(f"Linux {versions['kernel']}, QEMU {versions['qemu']}", flush=True)
                    for file in files:
                        good = one(bench, file) and good
                    if qemu == of_kernel(kernel).qemu:
                        for file in OWN:
                            good = one(bench, file, WRONG) and good
            except SvmStreamError as error:
                print(f"Linux {kernel}, QEMU {qemu}: {error}")
                good = False
    print(f"{'all right' if good else 'NOT all right'}, {time.monotonic() - start:.0f} s")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
