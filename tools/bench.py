"""Start-up and decoding times, as medians of whole processes.

Absolute figures depend on the machine; what to watch is the ratio to a bare
``python -c pass`` and, where it has been fetched, to QEMU's own script.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from qemu_svm.source import open_source

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = str(Path(sys.executable).with_name("svmstream"))
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qemu-svm"
RUNS = 15


def median(command: list[str]) -> float:
    """Milliseconds of wall time, median of several runs after one warm-up."""
    times = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def main() -> None:
    packed = ROOT / "streams" / "qemu10.0-linux6.12-nested-npt.mig.zst"
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "dump.bin"
        with open_source(str(packed)) as source:
            plain.write_bytes(source.read_at(0, source.size()))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "svmstream --help": [PROGRAM, "--help"],
            "inspect": [PROGRAM, "inspect", str(plain)],
            "inspect --json": [PROGRAM, "inspect", "--json", str(plain)],
            "inspect (zstd)": [PROGRAM, "inspect", str(packed)],
        }
        script = CACHE / "analyze-migration.py"
        if script.exists():
            commands["analyze-migration.py"] = [
                sys.executable, str(script), "-d", "state", "-f", str(plain),
            ]  # fmt: skip
        figures = {name: median(command) for name, command in commands.items()}
    base = figures["python -c pass"]
    for name, figure in figures.items():
        print(f"{name:24}{figure:8.1f} ms{figure / base:7.1f} x")


if __name__ == "__main__":
    main()
