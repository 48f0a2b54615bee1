#!/usr/bin/env python3
"""Run the kernel's own KVM selftests in the box, recorded: every recording is read and judged.

The source is Debian's package of the kernel's source; what is built from it is not kept.  A
directory as the first argument has selftests that are built already; with names of selftests as
arguments, only those.  A line for each.  A selftest that passes must not be
against the rules of ``trace``.  Exit status 1 if a recording cannot be read or is judged wrongly.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from qemu_svm.lab import Box
from qemu_svm.lab.progress import SILENT
from qemu_svm.lab.recording import recorded
from qemu_svm.lab.suites import apt
from qemu_svm.recording.recording import read_recording
from qemu_svm.recording.records import Ended, Ioctl, Lost
from qemu_svm.source import open_source

KERNEL, SUITE = "6.1", "bookworm"
SECONDS = 100
MOST_VMS, MOST_PUTS = 8, 6
"""VMs of each recording, and puts of each of their vCPUs, that are held against the model."""

NO_PUT = (2, 3)
"""Exit statuses of simulate if the VM has no put of nested state."""

SKIPPED = 4
"""Exit status of a selftest that does not apply (tools/testing/selftests/kselftest.h)."""

TIMED_OUT = 124
LEFT_OUT = (
    *("drivers", "sound", "fs", "net", "Documentation", "samples", "crypto"),
    "arch/[!x]*",
)
SVMSTREAM = Path(sys.executable).with_name("svmstream")


def built(folder: Path, version: str) -> Path:
    """Fetch the source of a kernel, build its selftests, and return their directory."""
    place, _remarks = apt.updated(SUITE, apt.host_mirror(), folder / "apt", SILENT, archive=None)
    name = f"linux-source-{KERNEL}"
    package = place.download_only([name], version, SILENT)[name]
    tree = folder / "tree"
    tree.mkdir()
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as deb:
        inner = f"./usr/src/{name}.tar.xz"
        with subprocess.Popen(
            ["tar", "-xOf", "-", inner], stdin=deb.stdout, stdout=subprocess.PIPE
        ) as outer:
            left_out = [f"--exclude=*/{one}" for one in LEFT_OUT]
            subprocess.run(
                ["tar", "-C", tree, "--strip-components=1", "--no-same-owner", "-xJf", "-",
                 *left_out],
                stdin=outer.stdout, check=True,
            )  # fmt: skip
    subprocess.run(["make", "-s", "-C", tree, "ARCH=x86", "headers"], check=True)
    tests = tree / "tools/testing/selftests/kvm"
    # A few do not build in a stable kernel's source.
    subprocess.run(
        ["make", "-s", "-k", "-j2", "-C", tests, "LDFLAGS=-static -pthread -no-pie"],
        check=False, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return tests / "x86_64"


def programs(folder: Path, names: list[str]) -> list[Path]:
    found = [path for path in sorted(folder.iterdir()) if path.suffix == "" and path.is_file()]
    return [path for path in found if not names or path.name in names]


def read(path: Path) -> tuple[str, int]:
    """Read a recording to its end; return what is in it, or why that failed, and its VMs."""
    kinds: Counter[type] = Counter()
    vms = 0
    with open_source(str(path)) as source:
        recording = read_recording(source)
        for one in recording:
            kinds[type(one)] += 1
            vms += isinstance(one, Ioctl) and one.name == "KVM_CREATE_VM" and one.ret >= 0
    if recording.damage is not None or not kinds[Ended]:
        return f"DAMAGED: {recording.damage}", vms
    return f"{kinds[Ioctl]:6} calls, {kinds[Lost]} lost", vms


def judged(path: Path) -> tuple[str, bool]:
    """The verdict of trace, and whether there is one."""
    done = subprocess.run(
        [SVMSTREAM, "trace", "--json", path], capture_output=True, check=False, text=True
    )
    if done.returncode not in (0, 1):
        return f"status {done.returncode}: {done.stderr.strip()[-100:]}", False
    return str(json.loads(done.stdout)["verdict"]), True


def simulated(path: Path, vms: int) -> tuple[str, bool]:
    """How many puts of nested state the model answered as the kernel did, or the first not."""
    held = 0
    for vm in range(1, min(vms, MOST_VMS) + 1):
        put, last = 1, 1
        while put <= last:
            done = subprocess.run(
                [SVMSTREAM, "simulate", "--json", "--vm", str(vm), "--put", str(put), path],
                capture_output=True, check=False, text=True,
            )  # fmt: skip
            if done.returncode not in (0, 1):
                if put == 1 and done.returncode in NO_PUT:
                    break
                return f"VM {vm}, put {put}: {done.stderr.strip()[:80]}", False
            document = json.loads(done.stdout)
            for simulation in document["simulations"]:
                if simulation["recorded_difference"] is not None:
                    return f"VM {vm}, put {put}: {simulation['recorded_difference']}", False
            held += 1
            last = min(document["recorded"]["puts"], MOST_PUTS)
            put += 1
    return f"{held} puts as the model" if held else "no put of nested state", True


def one(box: Box, program: Path, folder: Path) -> bool:
    path = folder / f"{program.name}.rec"
    with recorded(box, str(path)) as before:
        command = [*before, "timeout", str(SECONDS), f"/share/{program.name}"]
        status = box.run(command, timeout=3 * SECONDS).returncode
    words = {0: "passes", SKIPPED: "skipped", TIMED_OUT: "too slow"}.get(status, "fails")
    contents, vms = read(path)
    verdict, is_judged = judged(path)
    model, agrees = simulated(path, vms)
    good = is_judged and agrees and "DAMAGED" not in contents
    good &= not (status == 0 and verdict == "violates")
    print(f"{program.name:40} {words:9} {contents:24} {verdict:18} {model}"
          f"{'' if good else '  WRONG'}", flush=True)  # fmt: skip
    return good


def main(names: list[str]) -> int:
    good = True
    ready = Path(names.pop(0)) if names and Path(names[0]).is_dir() else None
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, Box(kernel=KERNEL) as box:
        place = Path(folder)
        tests = programs(ready or built(place, box.versions["kernel"]), names)
        for program in tests:
            (box.share / program.name).write_bytes(program.read_bytes())
            (box.share / program.name).chmod(0o755)
            good &= one(box, program, place)
            (box.share / program.name).unlink()
    print(f"{len(tests)} selftests of Linux {box.versions['kernel']}")
    return 0 if good and tests else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
