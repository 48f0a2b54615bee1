"""Measure how time and memory grow with the input: twice the input, at most 2.2 times the time.

Each case is a generator of inputs of any size and a command that reads them.  The size is
doubled until the command takes half a second more than it takes for next to nothing; then
this size and its double are measured in turns, several times, and the least CPU times are
compared, without what the command takes for next to nothing (unless inputs of 256 MiB take
hardly more than that).  The exit status is 1 if a case grows faster than the limit.

The generators are those of ``bench_ram.py``, and inputs that cost more than their size at some
time, or could.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import bench_ram  # noqa: E402
from measure import LAUNCH, PROGRAM  # noqa: E402

from qemu_svm.source.spool import spool_directory  # noqa: E402 - tests are not installed
from tests.support import builders  # noqa: E402
from tests.support.builders import EOS, PAGE, RecordType, Section, counted, word, zero  # noqa: E402

MOST = 2.2
"""Times the CPU time that twice the input may take."""

ENOUGH = 0.5
"""Seconds of CPU time that the smaller input of a pair takes."""
LARGEST = 1 << 28  # bytes of an input
STATUSES = (0, 1, 2, 3)

Maker = Callable[[int, Path], None]


@dataclass(frozen=True)
class Case:
    """A generator and a command.

    :param make: writes an input with so many records, pages or bytes.
    :param command: arguments of ``svmstream``; ``{}`` is the input, ``{a}`` a smaller one,
        ``{out}`` a directory.
    :param first: the size to begin with.
    """

    make: Maker
    command: str
    first: int


def ram(records: Iterator[bytes] | Sequence[bytes], pages: int, path: Path) -> None:
    """Write a stream of one block."""
    before, after = builders.stream([], [b"<pages>"], {"m": pages * PAGE}).split(b"<pages>")
    with path.open("wb") as file:
        file.write(before + zero(0, "m"))
        file.writelines(records)
        file.write(after)


def in_order(size: int, path: Path) -> None:
    """Zero pages with gaps: a run each."""
    ram((zero(2 * number * PAGE) for number in range(size)), 2 * size, path)


def falling(size: int, path: Path) -> None:
    """Zero pages from the last to the first."""
    ram((zero(number * PAGE) for number in range(size, 0, -1)), size + 1, path)


def shuffled(size: int, path: Path) -> None:
    """Zero pages in any order."""
    numbers = list(range(size))
    random.Random(size).shuffle(numbers)
    ram((zero(number * PAGE) for number in numbers), size, path)


def again(size: int, path: Path) -> None:
    """The same 1000 pages over and over."""
    ram((zero(number % 1000 * PAGE) for number in range(size)), 1000, path)


def stairs(size: int, path: Path) -> None:
    """Runs that overlap the one before by half."""
    numbers = (number // 20 * 10 + number % 20 for number in range(size))
    ram((zero(number * PAGE) for number in numbers), size, path)


def deltas(size: int, path: Path) -> None:
    """XBZRLE of one page."""
    ram((word(0x60) + b"\1\0\3\0\1x" for _ in range(size)), 1, path)


def deltas_of_many(size: int, path: Path) -> None:
    """XBZRLE of many pages, several times each."""
    pages = max(1, size // 8)
    ram(
        (word(number % pages * PAGE | 0x60) + b"\1\0\3\0\1x" for number in range(size)), pages, path
    )


def mapped(size: int, path: Path) -> None:
    """mapped-ram with every other page stored; the file is sparse."""
    name = b"mapped-ram"
    body = (1).to_bytes(4, "big") + bytes((len(name),)) + name
    config = builders.configuration(
        "pc", builders.subsection("configuration/capabilities", 1, body)
    )
    head = builders.header() + config
    head += bytes((RecordType.START,)) + (2).to_bytes(4, "big") + counted("ram")
    head += bytes(4) + (4).to_bytes(4, "big") + word(size * PAGE | 4)
    head += counted("m") + word(size * PAGE)
    bitmap = len(head) + 28
    bits = -(-size // 64) * 8
    pages = -(-(bitmap + bits) // PAGE) * PAGE
    head += (1).to_bytes(4, "big") + word(PAGE) + word(bitmap) + word(pages)
    with path.open("wb") as file:
        file.write(head + b"\xaa" * bits)
        file.seek(pages + size * PAGE)
        file.write(EOS + builders.footer(2))
        file.write(builders.referring(RecordType.END, 2, EOS) + b"\0")


def starts(size: int, path: Path) -> None:
    """START after START of one section."""
    one = builders.named(RecordType.START, 1, "foo", 0, 1, b"")
    path.write_bytes(builders.header() + builders.configuration("pc") + one * size + b"\0")


def parts(size: int, path: Path) -> None:
    """PARTs of RAM with a page each."""
    head, tail = builders.stream([], [b"<pages>"], {"m": PAGE}).split(b"<pages>", 1)
    head = head[: head.rindex(bytes((RecordType.PART,)) + (2).to_bytes(4, "big"))]
    first = builders.referring(RecordType.PART, 2, zero(0, "m") + EOS)
    more = builders.referring(RecordType.PART, 2, zero(0) + EOS)
    rest = tail[len(EOS) + len(builders.footer(2)) :]
    path.write_bytes(head + first + more * size + rest)


def sections(size: int, path: Path) -> None:
    """Device sections, each described."""
    field = {"name": "n", "type": "uint32", "size": 4}
    made = [Section(f"dev{number}", bytes(4), [field]) for number in range(size)]
    path.write_bytes(builders.stream(made))


def fields(size: int, path: Path) -> None:
    """A device section with many fields."""
    described = [{"name": f"f{number}", "type": "uint8", "size": 1} for number in range(size)]
    path.write_bytes(builders.stream([Section("dev", bytes(size), described)]))


def buffer(size: int, path: Path) -> None:
    """A buffer that differs from that of half the size in every other byte."""
    field = {"name": "buf", "type": "buffer", "size": size}
    fill = bytes((path.name == "a", 0))
    path.write_bytes(builders.stream([Section("dev", fill * (size // 2), [field])]))


def of_bench(shape: bench_ram.Shape) -> Maker:
    """Return a generator of ``bench_ram.py``; the size is in pages."""
    return lambda size, path: bench_ram.make(path, size * PAGE, shape)


RAM, EXTRACT = "ram --json {}", "ram --json --extract {out} {}"
RAM_DIFF = "diff --ram --json {a} {}"

CASES: dict[str, Case] = {
    **{
        f"{make.__name__}, {verb}": Case(make, command, 1 << 14)
        for make in (in_order, falling, shuffled, again, stairs, deltas, deltas_of_many, mapped)
        for verb, command in (("ram", RAM), ("diff", RAM_DIFF))
    },
    "deltas, extract": Case(deltas, EXTRACT, 1 << 14),
    "deltas_of_many, extract": Case(deltas_of_many, EXTRACT, 1 << 14),
    "mapped, extract": Case(mapped, EXTRACT, 1 << 14),
    "starts, show": Case(starts, "show --json {} section:foo.x", 1 << 9),
    "starts, inspect": Case(starts, "inspect --json {}", 1 << 9),
    "parts, inspect": Case(parts, "inspect --json --ram {}", 1 << 12),
    "sections, inspect": Case(sections, "inspect --json {}", 1 << 8),
    "sections, show": Case(sections, "show --json {} section:dev", 1 << 8),
    "sections, diff": Case(sections, "diff --json {a} {}", 1 << 8),
    "fields, show": Case(fields, "show --json {} section:dev", 1 << 8),
    "fields, diff": Case(fields, "diff --json {a} {}", 1 << 8),
    "buffer, diff": Case(buffer, "diff {a} {}", 1 << 16),
    **{
        f"{shape.__name__}, {verb}": Case(of_bench(shape), command, 1 << 12)
        for shape in bench_ram.SHAPES
        for verb, command in (("ram", RAM), ("extract", EXTRACT), ("diff", RAM_DIFF))
    },
}


def measured(command: str, inputs: tuple[Path, Path]) -> tuple[float, float]:
    """Run a command; return its CPU seconds and its peak memory in MiB."""
    half, whole = inputs
    out = whole.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = [word.format(whole, a=half, out=out) for word in command.split()]
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCH, *PROGRAM, *words]
    done = subprocess.run(launcher, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    if done.returncode not in STATUSES:
        raise SystemExit(f"svmstream {' '.join(words)} failed with status {done.returncode}")
    _, cpu, memory = done.stdout.split()
    return float(cpu), int(memory) / 1024


def growth(
    case: Case, folder: Path, rounds: int, enough: float
) -> tuple[int, list[tuple[float, float]], float]:
    """Measure a case.

    :returns: the size in bytes of the smaller input, the least CPU seconds and the memory for
        both, and the CPU seconds for next to nothing.
    """

    def made(size: int) -> tuple[Path, Path]:
        place = folder / str(size)
        place.mkdir(exist_ok=True)
        inputs = place / "a", place / "b"
        if not inputs[1].exists():
            case.make(size // 2 if "{a}" in case.command else 2, inputs[0])
            case.make(size, inputs[1])
        return inputs

    size = case.first
    least = min(measured(case.command, made(8))[0] for _ in range(rounds))
    while True:
        inputs = made(size)
        length = inputs[1].stat().st_blocks * 512
        if measured(case.command, inputs)[0] >= least + enough or 4 * length > LARGEST:
            break
        shutil.rmtree(inputs[0].parent)
        size *= 2
    pair = inputs, made(2 * size)
    seen = [[measured(case.command, one) for one in pair] for _ in range(rounds)]
    best = [(min(one[n][0] for one in seen), max(one[n][1] for one in seen)) for n in (0, 1)]
    length = min(inputs[1].stat().st_size, inputs[1].stat().st_blocks * 512)
    for one in pair:
        shutil.rmtree(one[0].parent)
    return length, best, least


def main() -> int:
    """Measure all cases, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each input is read")
    parser.add_argument(
        "--enough", type=float, default=ENOUGH, metavar="SECONDS",
        help="CPU time that the smaller input takes, at least",
    )  # fmt: skip
    parser.add_argument("cases", nargs="*", help="words of the names of cases")
    given = parser.parse_args()
    slow = []
    print("| input | bytes | CPU s | twice as much | ratio | memory MiB | twice as much |")
    print("|--|--|--|--|--|--|--|")
    for name, case in CASES.items():
        if given.cases and not any(part in name for part in given.cases):
            continue
        with tempfile.TemporaryDirectory(prefix="svmstream-growth-", dir=spool_directory()) as one:
            length, ((time, memory), (twice, more)), least = growth(
                case, Path(one), given.rounds, given.enough
            )
        start = least if time - least > given.enough / 3 else 0
        ratio = (twice - start) / (time - start)
        print(
            f"| {name} | {length} | {time:.2f} | {twice:.2f} | {ratio:.2f} "
            f"| {memory:.0f} | {more:.0f} |", flush=True,
        )  # fmt: skip
        if ratio > MOST:
            slow.append(name)
    for name in slow:
        print(f"{name}: more than {MOST} times the time for twice the input", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
