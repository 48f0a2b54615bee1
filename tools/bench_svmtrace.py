#!/usr/bin/env python3
"""Overhead of svmtrace while nothing is hooked: boots of a box with and without it, in turn.

Compared is the processor time of the emulator until /dev/kvm exists; on a busy machine
it is more reliable than the clock.  Arguments: pairs (default 5), emulators.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from pathlib import Path

from qemu_svm.lab import Box, svmtrace


def boot(emulator: str, extra: tuple[str, ...]) -> float:
    """Return the processor seconds of one boot."""
    with Box("6.1", emulator=emulator, emulator_args=extra) as box:
        fields = Path(f"/proc/{box.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for emulator in sys.argv[2:] or svmtrace.EMULATORS:
        seconds: dict[bool, list[float]] = {False: [], True: []}
        with tempfile.TemporaryDirectory() as folder:
            extra = svmtrace.arguments(Path(folder) / "log")
            for _ in range(pairs):
                for traced in (False, True):
                    seconds[traced].append(boot(emulator, extra if traced else ()))
        without, with_it = (statistics.mean(seconds[traced]) for traced in (False, True))
        print(
            f"QEMU {emulator}: {without:.2f} s without, {with_it:.2f} s with svmtrace: "
            f"{100 * (with_it / without - 1):+.1f} % ({pairs} pairs)"
        )


if __name__ == "__main__":
    main()
