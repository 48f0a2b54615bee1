"""Speed of reading RAM: generated guests, compared with ``cat`` and QEMU's own script.

Every figure is the median of several whole processes with warm caches, which take
turns, so that other load affects all of them; the ratios are what counts.  Streams are
made one after the other in the directory for temporary copies (``TMPDIR``, else
``/var/tmp``) and removed; streams that do not fit there are left out.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from measure import CACHE, PROGRAM, Figures, table, take_turns  # noqa: E402

from qemu_svm.source import open_source  # noqa: E402 - tests are not installed
from qemu_svm.source.spool import spool_directory  # noqa: E402
from qemu_svm.stream import read_stream  # noqa: E402
from qemu_svm.stream.ram import compiled  # noqa: E402
from qemu_svm.stream.ram.read import read_ram  # noqa: E402
from qemu_svm.stream.ram.scan import Scanner, scan, scan_compiled, scan_records, scan_runs  # noqa: E402
from tests.support import builders  # noqa: E402

MIB = 1 << 20
SAME_PAGE, SAME_ZERO = 0x28, 0x22
MARK = b"<pages>"
# As if there had been no compiler.
WITHOUT = "import sys; sys.modules['qemu_svm.stream.ram._ram'] = None; "
WITHOUT += "from qemu_svm.__main__ import main; main()"

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
    """Pages with content and zero pages in turn."""
    for _first in range(0, pages, 2):
        yield 1, True
        yield 1, False


SHAPES: tuple[Shape, ...] = (mostly_zero, mostly_full, mixed, alternating)


def make(path: Path, size: int, shape: Shape) -> None:
    """Write the stream of a guest with ``size`` bytes of RAM and one device."""
    page = builders.PAGE
    chance = random.Random(size)
    content = chance.randbytes(page)
    device = builders.Section("timer", b"\0\0\0\7", [{"name": "n", "type": "uint32", "size": 4}])
    # A START, PART and END; the mark is replaced by pages.
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


def script(*options: str) -> list[str]:
    """Return the command line of QEMU's script; empty if it was not fetched."""
    path = CACHE / "analyze-migration.py"
    return [sys.executable, str(path), *options] if path.exists() else []


def index(path: Path, scanner: Scanner, rounds: int) -> tuple[Figures, int]:
    """Measure reading stream and RAM in this process; return also the number of records."""
    walls, cpus, records = [], [], 0
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        with open_source(str(path)) as source:
            ram = read_ram(read_stream(source), scan=scanner)
            walls.append(1e3 * (time.perf_counter() - wall))
            cpus.append(1e3 * (time.process_time() - cpu))
            records = ram.runs.records
    return Figures(statistics.median(walls), statistics.median(cpus)), records


def compared(name: str, path: Path, rounds: int) -> None:
    """Measure one stream, compared with ``cat`` and the script."""
    ram = ["ram", "--json", str(path)]
    commands = {
        "cat": ["cat", str(path)],
        "inspect": [*PROGRAM, "inspect", str(path)],
        "ram": [*PROGRAM, *ram],
        "ram, without compiler": [sys.executable, "-c", WITHOUT, *ram],
        "report": [*PROGRAM, "report", str(path), "-f", "-o", str(path.with_suffix(".html"))],
        "script": script("-d", "state", "-f", str(path)),
    }
    figures = take_turns({key: value for key, value in commands.items() if value}, rounds)
    figures["index, once started"] = index(path, scan, rounds)[0]
    table(f"{name}: {path.stat().st_size / MIB:.0f} MiB", figures, ("cat", "script"))


def into_files(name: str, path: Path, rounds: int) -> None:
    """Measure writing RAM to files, compared with the script and ``cp``."""
    commands = {
        "cp": ["cp", "--reflink=never", str(path), "copy"],
        "ram --extract": [*PROGRAM, "ram", "--json", "--extract", "out", str(path)],
        "script -x": script("-x", "-f", str(path)),
    }
    given = {key: value for key, value in commands.items() if value}
    # The script writes into the working directory.
    figures = take_turns(given, rounds, path.parent / "files")
    table(f"{name}, into files", figures, ("cp", "script -x"))


def by_record(name: str, path: Path) -> None:
    """Print the nanoseconds per record of each scanner."""
    scanners: dict[str, Scanner] = {"plain loop": scan_records, "runs by columns": scan_runs}
    if compiled.ram is not None:
        scanners["compiled"] = scan_compiled
    words = []
    for label, scanner in scanners.items():
        figures, records = index(path, scanner, 3)
        words.append(f"{label} {1e6 * figures.cpu / records:.0f} ns")
    print(f"{name}, a record: {', '.join(words)}")


@contextmanager
def streams(folder: Path, shape: Shape, *sizes: int) -> Iterator[list[Path]]:
    """Yield streams of guests of these sizes; none if there is not enough space."""
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
    """Measure everything for one shape."""
    title = shape.__name__.replace("_", " ")
    # Half of a mixed guest is zero, so a guest twice as large makes a stream of that size.
    sizes = (size, 2 * size) if shape is mixed else (size,)
    with streams(folder, shape, *sizes) as paths:
        for path in paths:
            compared(f"{title}, guest of {path.name} MiB", path, rounds)
        for path in paths[:1]:
            by_record(title, path)
    # A file with a hole for every other page is slow on most file systems, above all
    # to remove; so that one is smaller.
    with streams(folder, shape, size // 8 if shape is alternating else size) as paths:
        for path in paths:
            into_files(f"{title}, guest of {path.name} MiB", path, rounds)


def growth(folder: Path, sizes: Sequence[int], shape: Shape, verb: str, rounds: int) -> None:
    """Measure one verb for guests of different sizes."""
    with streams(folder, shape, *sizes) as paths:
        commands = {
            f"{verb}, {path.name} MiB": [*PROGRAM, verb, "--json", str(path)] for path in paths
        }
        if commands:
            name = shape.__name__.replace("_", " ")
            table(f"growth, {name}", take_turns(commands, rounds), (next(iter(commands)),))


def main() -> None:
    """Measure all shapes, then growth with size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="size of the guest")
    parser.add_argument("--rounds", type=int, default=5, help="how often each command runs")
    names = {shape.__name__.replace("_", "-"): shape for shape in SHAPES}
    parser.add_argument("--shape", action="append", choices=names, help="only this one")
    given = parser.parse_args()
    shapes = [names[name] for name in given.shape or names]
    size = given.mib * MIB
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="svmstream-bench-", dir=spool_directory()) as name:
        for shape in shapes:
            every_figure(Path(name), size, shape, given.rounds)
        for shape in shapes:
            growth(Path(name), (size // 2, size), shape, "ram", given.rounds)
        growth(Path(name), (size // 32, 4 * size), mixed, "inspect", given.rounds)


if __name__ == "__main__":
    main()
