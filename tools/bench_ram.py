"""RAM at what speed: generated guests, beside ``cat`` and QEMU's own script.

Every figure is the median of several whole processes with warm caches, which take
turns, so that what else the machine does meets all of them; what to look at are the
ratios.  Streams are made one after the other where pipes are kept too (``TMPDIR``,
else ``/var/tmp``) and removed; what has no room there is left out.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from qemu_svm.source import open_source  # noqa: E402 - the tests are no installed package
from qemu_svm.source.spool import spool_directory  # noqa: E402
from qemu_svm.stream import compiled, read_stream  # noqa: E402
from qemu_svm.stream.ram_index import read_ram  # noqa: E402
from qemu_svm.stream.ram_scan import Scanner, scan_compiled, scan_records, scan_runs  # noqa: E402
from tests import builders  # noqa: E402

PROGRAM = [sys.executable, str(Path(sys.executable).with_name("svmstream"))]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qemu-svm"
MIB = 1 << 20
SAME_PAGE, SAME_ZERO = 0x28, 0x22
MARK = b"<here the pages come>"
# As if no compiler had been there.
WITHOUT = (
    "import sys; sys.modules['qemu_svm.stream._ram'] = None; import qemu_svm.cli as c; c.main()"
)

Runs = Iterator[tuple[int, bool]]  # pages, whether they have content
Shape = Callable[[int, random.Random], Runs]


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


SHAPES: tuple[Shape, ...] = (mostly_zero, mostly_full, mixed, alternating)


def make(path: Path, size: int, shape: Shape) -> None:
    """Write the stream of a guest with ``size`` bytes: RAM and one device."""
    page = builders.PAGE
    chance = random.Random(size)
    content = chance.randbytes(page)
    device = builders.Section("timer", b"\0\0\0\7", [{"name": "n", "type": "uint32", "size": 4}])
    # An ordinary START, PART and END; the marked place is where pages go.
    whole = builders.stream([device], [builders.zero(0, "pc.ram") + MARK], {"pc.ram": size})
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


@dataclass(frozen=True)
class Figures:
    """Of one command: milliseconds of wall and CPU time, and MiB at most."""

    wall: float
    cpu: float
    memory: float


def run(command: Sequence[str]) -> Figures:
    """Run a command once."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed with status {process.returncode}")
    return Figures(1e3 * wall, 1e3 * (usage.ru_utime + usage.ru_stime), usage.ru_maxrss / 1024)


def take_turns(commands: Mapping[str, Sequence[str]], rounds: int) -> dict[str, Figures]:
    """Run all commands in turns, after one round to warm up."""
    seen: dict[str, list[Figures]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            figures = run(command)
            if number:
                seen[name].append(figures)
    return {
        name: Figures(
            statistics.median(one.wall for one in all_),
            statistics.median(one.cpu for one in all_),
            max(one.memory for one in all_),
        )
        for name, all_ in seen.items()
    }


def script(*options: str) -> list[str]:
    """QEMU's script, or nothing where it was not fetched."""
    path = CACHE / "analyze-migration.py"
    return [sys.executable, str(path), *options] if path.exists() else []


def table(title: str, figures: Mapping[str, Figures], than: Sequence[str]) -> None:
    """Print figures, and how many times as fast as others each one is."""
    others = [name for name in than if name in figures]
    print(f"\n{title}\n  {'':22}{'wall ms':>9}{'CPU ms':>9}{'MiB':>6}", end="")
    print("".join(f"{'of ' + name:>16}" for name in others))
    for name, one in figures.items():
        print(f"  {name:22}{one.wall:9.0f}{one.cpu:9.0f}{one.memory:6.0f}", end="")
        print("".join(f"{one.wall / figures[other].wall:16.3f}" for other in others))
    sys.stdout.flush()


def beside(name: str, path: Path, rounds: int) -> None:
    """One stream, beside ``cat`` and the script; then its RAM into files."""
    ram = ["ram", "--json", str(path)]
    commands = {
        "cat": ["cat", str(path)],
        "inspect": [*PROGRAM, "inspect", str(path)],
        "ram": [*PROGRAM, *ram],
        "ram, without compiler": [sys.executable, "-c", WITHOUT, *ram],
        "script": script("-d", "state", "-f", str(path)),
    }
    figures = take_turns({key: value for key, value in commands.items() if value}, rounds)
    table(f"{name}: {path.stat().st_size / MIB:.0f} MiB", figures, ("cat", "script"))
    # The script writes into the working directory.
    inside = "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
    peer = script("-x", "-f", str(path))
    commands = {
        "ram --extract": [*PROGRAM, *ram, "-f", "--extract", str(path.parent / "ours")],
        "script -x": [sys.executable, "-c", inside, str(path.parent), *peer] if peer else [],
    }
    figures = take_turns({key: value for key, value in commands.items() if value}, rounds)
    table(f"{name}, into files", figures, ("script -x",))


def by_record(name: str, path: Path) -> None:
    """Nanoseconds a record, of each scanner."""
    scanners: dict[str, Scanner] = {"plain loop": scan_records, "runs by columns": scan_runs}
    if compiled.ram is not None:
        scanners["compiled"] = scan_compiled
    words = []
    for label, scanner in scanners.items():
        times = []
        for _ in range(3):
            with open_source(str(path)) as source:
                stream = read_stream(source)
                start = time.process_time()
                ram = read_ram(stream, scan=scanner)
                times.append(time.process_time() - start)
        words.append(f"{label} {1e9 * min(times) / ram.runs.records:.0f} ns")
    print(f"{name}, a record: {', '.join(words)}")


def room(folder: Path, wanted: int) -> bool:
    """Whether ``wanted`` bytes and a little more fit; says so if not."""
    free = shutil.disk_usage(folder).free
    if free > wanted + 512 * MIB:
        return True
    print(f"\nleft out: {wanted / MIB:.0f} MiB in {folder}, {free / MIB:.0f} are free")
    return False


def growth(
    folder: Path, sizes: Sequence[int], shape: Shape, verbs: Sequence[str], rounds: int
) -> None:
    """The same verb for guests of different sizes."""
    commands = {}
    for size in sizes:
        path = folder / f"{size // MIB} MiB"
        make(path, size, shape)
        for verb in verbs:
            commands[f"{verb}, {size // MIB} MiB"] = [*PROGRAM, verb, "--json", str(path)]
    name = shape.__name__.replace("_", " ")
    first = next(iter(commands))
    table(f"growth, {name}", take_turns(commands, rounds), (first,))


def main() -> None:
    """Go through all shapes, then through sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="size of the guest")
    parser.add_argument("--rounds", type=int, default=5, help="how often each command runs")
    given = parser.parse_args()
    size = given.mib * MIB
    with tempfile.TemporaryDirectory(prefix="svmstream-bench-", dir=spool_directory()) as name:
        folder = Path(name)
        for shape in SHAPES:
            if not room(folder, 3 * size):
                continue
            with tempfile.TemporaryDirectory(dir=folder) as inner:
                path = Path(inner) / "stream.bin"
                make(path, size, shape)
                title = shape.__name__.replace("_", " ")
                beside(f"{title}, guest of {given.mib} MiB", path, given.rounds)
                by_record(title, path)
        for shape in SHAPES:
            if room(folder, 3 * size // 2):
                with tempfile.TemporaryDirectory(dir=folder) as inner:
                    growth(Path(inner), (size // 2, size), shape, ("ram",), given.rounds)
        if room(folder, 4 * size):
            with tempfile.TemporaryDirectory(dir=folder) as inner:
                growth(Path(inner), (size // 32, 4 * size), mixed, ("inspect",), given.rounds)


if __name__ == "__main__":
    main()
