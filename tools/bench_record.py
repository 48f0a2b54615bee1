#!/usr/bin/env python3
"""Measure what recording costs: ioctls and a whole restore, with and without, in one run.

Each figure is the least of several rounds, in which the program is measured without a recorder
and with each one, in turn, so that a busy machine slows all of them alike.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qemu_svm.qmp import sync

TOOLS = Path(__file__).resolve().parent
RECORD = [str(Path(sys.executable).with_name("svmstream")), "record", "-q"]
COPIES = "import qemu_svm.recorder.by_bpf as ways; ways._preempts = lambda _release: True; "
"""Attach the copies of each program that Linux 7.0 and later need."""
COPIED = [
    sys.executable, "-c", COPIES + "from qemu_svm.__main__ import main; main()", "record", "-q",
]  # fmt: skip
BOUND = 500
NAMES = ("KVM_RUN", "KVM_GET_REGS", "KVM_SET_SREGS", "KVM_SET_XSAVE", "getppid")
ROUNDS = 9
MANY, FEW = 1500, 150
QEMU = [
    "qemu-system-x86_64",
    "-accel",
    "kvm",
    "-M",
    "pc",
    "-cpu",
    "host",
    "-m",
    "64",
    "-nodefaults",
    "-display",
    "none",
]


class Bench:
    """The program that is measured."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def measure(self, batches: int) -> list[int]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{batches}\n")
        self.process.stdin.flush()
        return [int(word) for word in self._line().split()]

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def attached(pid: int, out: Path, how: str, record: Sequence[str] = RECORD) -> Iterator[None]:
    recorder = subprocess.Popen(
        [*record, "--pid", str(pid), "-o", str(out), "--how", how], stderr=subprocess.DEVNULL
    )
    try:
        while not out.exists() or not out.stat().st_size:
            assert recorder.poll() is None, "the recorder has ended"
            time.sleep(0.01)
        yield
    finally:
        recorder.terminate()
        recorder.wait()
        out.unlink()


def ioctls(folder: Path) -> dict[str, list[int]]:
    program = folder / "bench"
    subprocess.run(["gcc", "-O2", "-o", program, TOOLS / "bench_record.c"], check=True)
    out = folder / "bench.rec"
    found: dict[str, list[list[int]]] = defaultdict(list)
    plain = Bench([str(program)])
    filtered = Bench(
        [*RECORD, "-o", str(folder / "under.rec"), "--how", "ptrace", "--", str(program)]
    )
    for _round in range(ROUNDS):
        found["nothing"].append(plain.measure(MANY))
        with attached(plain.process.pid, out, "bpf"):
            found["eBPF"].append(plain.measure(MANY))
        with attached(plain.process.pid, out, "bpf", COPIED):
            found["eBPF, copies"].append(plain.measure(MANY))
        with attached(plain.process.pid, out, "ptrace"):
            found["ptrace --pid"].append(plain.measure(FEW))
        found["ptrace command"].append(filtered.measure(FEW))
    plain.end()
    filtered.end()
    return {
        name: [min(column) for column in zip(*rows, strict=True)] for name, rows in found.items()
    }


def saved(folder: Path) -> Path:
    """A stream of a guest that has just begun."""
    stream = folder / "vm.mig"
    socket = folder / "save.qmp"
    with running(QEMU, socket) as qmp:
        qmp.execute("migrate", {"uri": f"exec:cat > {stream}"})
        while qmp.migration().status != "completed":
            time.sleep(0.02)
    return stream


@contextmanager
def running(command: list[str], socket: Path) -> Iterator[sync.Connection]:
    process = subprocess.Popen(
        [*command, "-qmp", f"unix:{socket},server=on,wait=off"], stderr=subprocess.DEVNULL
    )
    with ExitStack() as stack:
        stack.callback(process.wait)
        stack.callback(process.terminate)
        until = time.monotonic() + 20
        while not socket.exists() and time.monotonic() < until:
            time.sleep(0.01)
        yield stack.enter_context(sync.connect(f"unix:{socket}"))


def restore(folder: Path, stream: Path, how: str) -> float:
    """Seconds from the command to load the stream until the guest runs."""
    socket, out = folder / "load.qmp", folder / "load.rec"
    before = [] if how == "nothing" else [*RECORD, "-o", str(out), "--how", how, "--"]
    with running([*before, *QEMU, "-incoming", "defer"], socket) as qmp:
        start = time.monotonic()
        qmp.execute("migrate-incoming", {"uri": f"exec:cat {stream}"})
        while qmp.status().state == "inmigrate":
            time.sleep(0.001)
        took = time.monotonic() - start
        qmp.execute("quit")
    out.unlink(missing_ok=True)
    socket.unlink(missing_ok=True)
    return took


def main() -> int:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK) or os.geteuid() != 0:
        print("recording: needs root and /dev/kvm; not measured")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = ioctls(folder)
        print(f"{'ns per call':16}" + "".join(f"{one:>15}" for one in NAMES))
        for how, row in rows.items():
            print(f"{how:16}" + "".join(f"{one:15}" for one in row))
        extra, copies = (rows[how][0] - rows["nothing"][0] for how in ("eBPF", "eBPF, copies"))
        print(f"KVM_RUN with eBPF: +{extra} ns (bound: {BOUND}), with copies: +{copies} ns")
        stream = saved(folder)
        times: dict[str, list[float]] = defaultdict(list)
        for _round in range(ROUNDS):
            for how in ("nothing", "bpf", "ptrace"):
                times[how].append(restore(folder, stream, how))
        for how, each in times.items():
            print(f"a restore, {how:8} least {min(each) * 1000:6.1f} ms, "
                  f"median {statistics.median(each) * 1000:6.1f} ms")  # fmt: skip
    return 0 if extra <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
