#!/usr/bin/env python3
"""RAM at memory speed: index and extraction next to ``cat`` and QEMU's script.

Makes streams of a guest (mostly zero, mostly full, mixed runs, alternating
pages) in a temporary directory and prints times and ratios; each figure is the
best of some runs, in processes of their own where other programs are compared.

    tools/bench_ram.py [--size MIB] [--runs N] [--extract] [KIND...]
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qemu_svm.source import open_source  # noqa: E402
from qemu_svm.stream import read_stream  # noqa: E402
from qemu_svm.stream.ram_index import read_ram  # noqa: E402
from tests import builders  # noqa: E402

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qemu-svm"
SCRIPT = CACHE / "analyze-migration.py"
PAGE = 4096
PROGRAM = """
import resource, sys, time
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from qemu_svm.stream.ram_index import read_ram
with open_source(sys.argv[1]) as source:
    ram = read_ram(read_stream(source))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def kinds(kind: str, pages: int) -> Iterator[bool]:
    """Whether each page is zero."""
    rnd = random.Random(1)
    zero, left = False, 0
    for number in range(pages):
        if kind == "alternating":
            yield bool(number & 1)
        elif kind == "mixed":
            if not left:
                zero, left = not zero, rnd.randint(1, 64)
            left -= 1
            yield zero
        else:
            yield rnd.random() < (0.001 if kind == "full" else 0.999)


def generate(path: Path, kind: str, pages: int) -> None:
    """Write a stream with one block of ``pages`` pages and one small device."""
    body = random.Random(2).randbytes(PAGE)
    device = builders.Section("timer", bytes(8), [{"name": "ticks", "type": "int64", "size": 8}])
    whole = builders.stream([device], [b"\xeeHERE"], {"pc.ram": pages * PAGE})
    before, after = whole.split(b"\xeeHERE")
    with path.open("wb", buffering=1 << 20) as file:
        file.write(before)
        for number, zero in enumerate(kinds(kind, pages)):
            flags = (2 if zero else 8) | (0x20 if number else 0)
            file.write((number * PAGE | flags).to_bytes(8, "big"))
            if not number:
                file.write(b"\6pc.ram")
            file.write(b"\0" if zero else body)
        file.write(after)


def best(runs: int, work: Callable[[], object]) -> float:
    """Shortest time of some runs, in seconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def quiet(*command: str | Path, cwd: Path | None = None) -> Callable[[], object]:
    return lambda: subprocess.run(
        list(map(str, command)), cwd=cwd, check=True, stdout=subprocess.DEVNULL
    )


def measure(path: Path, runs: int, directory: Path, *, extraction: bool) -> None:
    with open_source(str(path)) as source:
        stream = read_stream(source)
        quick = best(runs, lambda: read_ram(stream))
        slow = best(runs, lambda: read_ram(stream, scalar=True))
        records, pieces = read_ram(stream).runs.records, len(read_ram(stream).runs)
    cat = best(runs, quiet("cat", path))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path], cwd=ROOT, check=True, capture_output=True
    )
    print(
        f"  size             {path.stat().st_size / 1e6:8.1f} MB, {records} records, {pieces} runs"
    )
    print(f"  cat              {cat:8.3f} s")
    print(f"  index            {quick:8.3f} s   {quick / cat:5.2f} x cat")
    print(f"  index, scalar    {slow:8.3f} s   quick is {quick / slow:4.2f} x scalar")
    print(f"  peak memory      {int(done.stdout) / 1024:8.1f} MiB")
    program = Path(sys.executable).with_name("svmstream")
    verb = best(runs, quiet(program, "ram", path))
    print(f"  svmstream ram    {verb:8.3f} s")
    if SCRIPT.exists():
        script = best(max(1, runs // 2), quiet(sys.executable, SCRIPT, "-d", "state", "-f", path))
        print(f"  QEMU's script    {script:8.3f} s   {script / quick:5.1f} x index, "
              f"{script / verb:.1f} x svmstream ram")  # fmt: skip
    if extraction:
        out = directory / "out"
        ours = best(runs, quiet(program, "ram", "-f", "--extract", out, path))
        print(f"  extraction       {ours:8.3f} s")
        if SCRIPT.exists():
            out.mkdir(exist_ok=True)
            theirs = best(
                max(1, runs // 2), quiet(sys.executable, SCRIPT, "-x", "-f", path, cwd=out)
            )
            print(f"  script's         {theirs:8.3f} s   {theirs / ours:5.1f} x ours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kind", nargs="*", help="zero, full, mixed, alternating")
    parser.add_argument("--size", type=int, default=2048, help="guest memory in MiB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--extract", action="store_true", help="extraction too")
    parser.add_argument("--dir", help="where to put the streams (default: TMPDIR or /tmp)")
    given = parser.parse_args()
    for kind in given.kind or ("zero", "full", "mixed", "alternating"):
        with tempfile.TemporaryDirectory(dir=given.dir) as name:
            path = Path(name) / f"{kind}.bin"
            generate(path, kind, given.size << 8)
            print(f"{kind}, a guest with {given.size} MiB")
            measure(path, given.runs, Path(name), extraction=given.extract)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process {peak:.0f} MiB")


if __name__ == "__main__":
    main()
