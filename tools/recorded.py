#!/usr/bin/env python3
"""Restore a capture on each kernel of the lab, recorded by eBPF and by ptrace.

NESTED_STATE, SREGS, REGS and DEBUGREGS of the recording must be those of the stream, byte for
byte.  A line for each restore; with names of kernels as arguments, only those.  Exit status 1 if
anything differs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for the tests' oracle

from qemu_svm.lab import Box  # noqa: E402
from qemu_svm.lab.restore import copy_to_share, restore, settings_of  # noqa: E402
from qemu_svm.machine import read_machine  # noqa: E402
from qemu_svm.source import open_source  # noqa: E402
from qemu_svm.stream import read_stream  # noqa: E402
from tests.recorder.oracle import differences, recorded  # noqa: E402

CAPTURES = {
    "5.10": "qemu5.2-linux5.10-nested",
    "6.1": "qemu7.2-linux6.1-nested",
    "6.12": "qemu10.0-linux6.12-nested",
    "7.2": "qemu11.1-linux7.2-nested",
}


def one(box: Box, kernel: str, how: str) -> bool:
    with (
        tempfile.TemporaryDirectory() as folder,
        open_source(str(ROOT / "streams" / f"{CAPTURES[kernel]}.mig.zst")) as source,
    ):
        path = Path(folder) / "vmm.jsonl"
        machine = read_machine(read_stream(source))
        name = copy_to_share(box, source)
        outcome = restore(box, name, settings_of(machine), record=str(path), how=how)
        wrong = differences(machine, path)
        calls = sum("kind" not in record for record in recorded(path))
        lost = sum(record.get("kind") == "lost" for record in recorded(path))
    words = f"{calls} calls, {lost} lost; " + (
        f"differ: {wrong}" if wrong else "as the stream says"
    )
    print(f"Linux {box.versions['kernel']:16} {how:6}  {outcome.verdict}, {words}", flush=True)
    return outcome.good and not wrong and not lost


def main(kernels: list[str]) -> int:
    good = True
    for kernel in kernels or CAPTURES:
        with Box(kernel=kernel) as box:
            for how in ("bpf", "ptrace"):
                good &= one(box, kernel, how)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
