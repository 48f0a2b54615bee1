"""Start-up and decoding times, as medians of whole processes.

Absolute figures depend on the machine; the ratios to a bare ``python -c pass`` and, if
it was fetched, to QEMU's own script are what counts.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measure import CACHE, PROGRAM, table, take_turns

from qemu_svm.source import open_source

ROOT = Path(__file__).resolve().parent.parent
RUNS = 15


def main() -> None:
    packed = ROOT / "streams" / "qemu10.0-linux6.12-nested-npt.mig.zst"
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "dump.bin"
        with open_source(str(packed)) as source:
            plain.write_bytes(source.read_at(0, source.size()))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "svmstream --help": [*PROGRAM, "--help"],
            "inspect": [*PROGRAM, "inspect", str(plain)],
            "inspect --json": [*PROGRAM, "inspect", "--json", str(plain)],
            "inspect (zstd)": [*PROGRAM, "inspect", str(packed)],
        }
        script = CACHE / "analyze-migration.py"
        if script.exists():
            commands["analyze-migration.py"] = [
                sys.executable, str(script), "-d", "state", "-f", str(plain),
            ]  # fmt: skip
        table("start-up and decoding", take_turns(commands, RUNS), ("python -c pass",))


if __name__ == "__main__":
    main()
