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
from contextlib import contextmanager
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


# A process of its own starts each command: what a child has used before it becomes
# another program would count as that program's memory, and this one is small.
LAUNCH = """
import os, sys, time
start = time.perf_counter()
null = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=null)
_, status, used = os.wait4(pid, 0)
print(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run(command: Sequence[str]) -> Figures:
    """Run a command once."""
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCH, *command]
    done = subprocess.run(launcher, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}")
    wall, cpu, memory = done.stdout.split()
    return Figures(1e3 * float(wall), 1e3 * float(cpu), int(memory) / 1024)


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
    """Print figures, and what part of others' time each one takes: wall / CPU."""
    others = [name for name in than if name in figures]
    print(f"\n{title}\n  {'':22}{'wall ms':>9}{'CPU ms':>9}{'MiB':>6}", end="")
    print("".join(f"{name:>16}" for name in others))
    for name, one in figures.items():
        print(f"  {name:22}{one.wall:9.0f}{one.cpu:9.0f}{one.memory:6.0f}", end="")
        for other in (figures[other] for other in others):
            ratios = f"{one.wall / other.wall:.2f} / {one.cpu / max(other.cpu, 1):.2f}"
            print(f"{ratios:>16}", end="")
        print()
    sys.stdout.flush()


def beside(name: str, path: Path, rounds: int) -> None:
    """One stream, beside ``cat`` and the script."""
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


def into_files(name: str, path: Path, rounds: int) -> None:
    """The RAM of one stream into files, beside the script and ``cp``."""
    # The script writes into the working directory; each begins with no file there.
    folder = path.parent / "files"
    inside = "import os, shutil, sys; shutil.rmtree(sys.argv[1], True); os.mkdir(sys.argv[1])\n"
    inside += "os.chdir(sys.argv[1]); os.execvp(sys.argv[2], sys.argv[2:])"
    begin = [sys.executable, "-I", "-S", "-c", inside, str(folder)]
    peer = script("-x", "-f", str(path))
    commands = {
        "cp": [*begin, "cp", "--reflink=never", str(path), "copy"],
        "ram --extract": [*begin, *PROGRAM, "ram", "--json", "--extract", "out", str(path)],
        "script -x": [*begin, *peer] if peer else [],
    }
    figures = take_turns({key: value for key, value in commands.items() if value}, rounds)
    table(f"{name}, into files", figures, ("cp", "script -x"))


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


@contextmanager
def streams(folder: Path, shape: Shape, *sizes: int) -> Iterator[list[Path]]:
    """Streams of guests of these sizes for a while; none where there is no room."""
    wanted = 3 * sum(sizes)
    free = shutil.disk_usage(folder).free
    if free < wanted + 512 * MIB:
        print(f"\nleft out: {wanted / MIB:.0f} MiB in {folder}, of which {free / MIB:.0f} are free")
        yield []
        return
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        paths = [Path(inner) / f"{size // MIB}" for size in sizes]
        for path, size in zip(paths, sizes, strict=True):
            make(path, size, shape)
        yield paths


def every_figure(folder: Path, size: int, shape: Shape, rounds: int) -> None:
    """All about one shape."""
    title = shape.__name__.replace("_", " ")
    with streams(folder, shape, size) as paths:
        for path in paths:
            beside(f"{title}, guest of {path.name} MiB", path, rounds)
            by_record(title, path)
    # A file with a hole for every other page is a burden to most file systems,
    # to remove it above all; so that one is smaller.
    with streams(folder, shape, size // 8 if shape is alternating else size) as paths:
        for path in paths:
            into_files(f"{title}, guest of {path.name} MiB", path, rounds)


def growth(folder: Path, sizes: Sequence[int], shape: Shape, verb: str, rounds: int) -> None:
    """The same verb for guests of different sizes."""
    with streams(folder, shape, *sizes) as paths:
        commands = {
            f"{verb}, {path.name} MiB": [*PROGRAM, verb, "--json", str(path)] for path in paths
        }
        if commands:
            name = shape.__name__.replace("_", " ")
            table(f"growth, {name}", take_turns(commands, rounds), (next(iter(commands)),))


def main() -> None:
    """Go through all shapes, then through sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="size of the guest")
    parser.add_argument("--rounds", type=int, default=5, help="how often each command runs")
    given = parser.parse_args()
    size = given.mib * MIB
    with tempfile.TemporaryDirectory(prefix="svmstream-bench-", dir=spool_directory()) as name:
        for shape in SHAPES:
            every_figure(Path(name), size, shape, given.rounds)
        for shape in SHAPES:
            growth(Path(name), (size // 2, size), shape, "ram", given.rounds)
        growth(Path(name), (size // 32, 4 * size), mixed, "inspect", given.rounds)


if __name__ == "__main__":
    main()
