"""Times of the verbs on a machine of 288 vCPUs, beside QEMU's own script.

The streams are made by a QEMU 10.0 out of the cache: two stops of one machine.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import CACHE, PROGRAM, table, take_turns

from qemu_svm.lab.box.emulator import program
from qemu_svm.lab.suites import build
from qemu_svm.lab.suites import catalogue as suites

RUNS = 7
VCPUS = 288


def made(folder: Path) -> tuple[Path, Path]:
    """Save the machine before its firmware runs, and some seconds later."""
    streams = folder / "first.mig", folder / "second.mig"
    path = folder / "qmp.sock"
    command = [
        *program(build.need(suites.of_qemu("10.0"))), "-M", "q35", "-accel", "tcg", "-cpu", "max",
        "-smp", str(VCPUS), "-m", "64", "-device", "intel-iommu,intremap=on,eim=on",
        "-display", "none", "-S", "-qmp", f"unix:{path},server=on,wait=off",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as qemu:
        try:
            while not path.exists():
                time.sleep(0.1)
            with socket.socket(socket.AF_UNIX) as monitor:
                monitor.connect(str(path))
                lines = monitor.makefile("rw")

                def run(name: str, **arguments: str) -> dict[str, object]:
                    lines.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
                    lines.flush()
                    while "return" not in (answer := json.loads(lines.readline())):
                        if "error" in answer:
                            raise SystemExit(f"{name}: {answer['error']}")
                    return answer["return"]

                lines.readline()
                run("qmp_capabilities")
                for stream in streams:
                    run("migrate", uri=f"exec:cat > {stream}")
                    while run("query-migrate").get("status") != "completed":
                        time.sleep(0.1)
                    run("cont")
                    time.sleep(6)
                    run("stop")
        finally:
            qemu.kill()
    return streams


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = map(str, made(Path(folder)))
        commands = {
            "inspect": [*PROGRAM, "inspect", first],
            "check": [*PROGRAM, "check", first],
            "diff, equal": [*PROGRAM, "diff", first, first],
            "diff, all differ": [*PROGRAM, "diff", "--fail-on", "never", first, second],
        }
        script = CACHE / "analyze-migration.py"
        if script.exists():
            commands["analyze-migration.py"] = [
                sys.executable, str(script), "-d", "state", "-f", first,
            ]  # fmt: skip
        table(f"{VCPUS} vCPUs", take_turns(commands, RUNS), ("analyze-migration.py",))


if __name__ == "__main__":
    main()
