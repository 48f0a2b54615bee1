"""RAM at what speed: generated guests, beside ``cat`` and QEMU's own script.

Every figure is the least of several whole processes, with warm caches; what to
look at are the ratios.  The streams need twice as many bytes as they are long,
in the temporary directory.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests import builders  # noqa: E402 - not a package that is installed

PROGRAM = str(Path(sys.executable).with_name("svmstream"))
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qemu-svm"
MIB = 1 << 20
RUNS = 3
SAME_PAGE, SAME_ZERO = 0x28, 0x22
MARK = b"<here the pages come>"

Runs = Iterator[tuple[int, bool]]  # pages, whether they have content


def mostly_zero(pages: int, _: random.Random) -> Runs:
    """One page in 64 has content."""
    for _first in range(0, pages, 64):
        yield 63, False
        yield 1, True


def mostly_full(pages: int, _: random.Random) -> Runs:
    """One page in 64 is zero."""
    for _first in range(0, pages, 64):
        yield 63, True
        yield 1, False


def mixed(pages: int, chance: random.Random) -> Runs:
    """Runs of 1 to 512 pages of either kind."""
    left, full = pages, False
    while left:
        count = min(left, chance.randint(1, 512))
        yield count, full
        left, full = left - count, not full


def alternating(pages: int, _: random.Random) -> Runs:
    """A page with content, a zero page, and so on."""
    for _first in range(0, pages, 2):
        yield 1, True
        yield 1, False


def make(path: Path, size: int, shape: Callable[[int, random.Random], Runs]) -> None:
    """Write the stream of a guest with ``size`` bytes."""
    page = builders.PAGE
    chance = random.Random(size)
    content = chance.randbytes(page)
    # An ordinary START, PART and END; the marked place is where pages go.
    whole = builders.stream([], [builders.zero(0, "pc.ram") + MARK], {"pc.ram": size})
    before, after = whole.split(MARK)
    number = 0
    with path.open("wb", buffering=MIB) as file:
        file.write(before)
        for count, full in shape(size // page, chance):
            flags, body = (SAME_PAGE, content) if full else (SAME_ZERO, b"\0")
            for offset in range(number * page, (number + count) * page, page):
                file.write((offset | flags).to_bytes(8, "big") + body)
            number += count
        file.write(after)


def run(command: list[str]) -> tuple[float, int]:
    """Milliseconds and KiB at most, of the quickest of several runs."""
    best = (float("inf"), 0)
    for _ in range(RUNS):
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        took = 1000 * (time.perf_counter() - start)
        if process.returncode:
            raise SystemExit(f"{command[0]} failed with status {process.returncode}")
        best = min(best, (took, usage.ru_maxrss))
    return best


def measure(name: str, path: Path, folder: Path) -> None:
    """Print the figures of one stream."""
    commands = {
        "cat": ["cat", str(path)],
        "inspect": [PROGRAM, "inspect", str(path)],
        "ram": [PROGRAM, "ram", "--json", str(path)],
        "ram --extract": [PROGRAM, "ram", "-f", "--extract", str(folder / "out"), str(path)],
    }
    script = CACHE / "analyze-migration.py"
    if script.exists():
        peer = [sys.executable, str(script), "-f", str(path)]
        commands["analyze-migration.py"] = [*peer, "-d", "state"]
        # It writes the files of -x into the working directory.
        inside = "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
        commands["analyze-migration.py -x -m"] = [
            sys.executable, "-c", inside, str(folder), *peer, "-x", "-m",
        ]  # fmt: skip
    print(f"{name}, {path.stat().st_size / MIB:.0f} MiB")
    base = 0.0
    for label, command in commands.items():
        took, memory = run(command)
        base = base or took
        print(f"  {label:28}{took:9.0f} ms{took / base:8.1f} x cat{memory / 1024:9.0f} MiB")
    sys.stdout.flush()


def main() -> None:
    """Go through all shapes, then through sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="size of the guest")
    size = parser.parse_args().mib * MIB
    cases = [(shape.__name__, size, shape) for shape in (mostly_zero, mostly_full, mixed)]
    cases.append(("alternating", size, alternating))
    cases += [("growth", size // 32, mixed), ("growth", size * 4, mostly_zero)]
    for name, bytes_of_guest, shape in cases:
        folder = Path(tempfile.mkdtemp(prefix="svmstream-bench-"))
        try:
            path = folder / "stream.bin"
            make(path, bytes_of_guest, shape)
            measure(f"{name.replace('_', ' ')}, {bytes_of_guest // MIB} MiB guest", path, folder)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
