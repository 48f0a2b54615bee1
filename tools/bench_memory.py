"""Guest memory at what speed: reads, walks, lists, a core, beside ``cp`` and volatility3.

A guest is generated whose memory maps itself: L1's page tables, and nested ones for an L2
that has page tables too, all with pages of 4 KiB.  Figures are per second of wall and of
CPU time; the machine's other load is in the first.  volatility3 is measured where it is
installed; it reads the same stream with a layer of its own.  For cores a QEMU, where there
is one, gets a file as its memory, dumps that with ``dump-guest-memory`` and saves it; the
stream is the input of ``mem core`` and of ``cp``.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from measure import PROGRAM, table, take_turns  # noqa: E402

from qemu_svm.machine import read_machine  # noqa: E402
from qemu_svm.memory.memory import GuestMemory  # noqa: E402
from qemu_svm.memory.paging import mode  # noqa: E402
from qemu_svm.memory.spaces import Space  # noqa: E402
from qemu_svm.qmp import sync  # noqa: E402
from qemu_svm.source import open_source  # noqa: E402
from qemu_svm.source.spool import spool_directory  # noqa: E402
from qemu_svm.stream import read_stream  # noqa: E402
from qemu_svm.stream.ram.read import read_ram  # noqa: E402
from tests.support import builders  # noqa: E402

MIB, PAGE = 1 << 20, builders.PAGE
MARK = b"<here the pages come>"
SAME_PAGE = 0x28
PG, PAE, LMA = 1 << 31, 1 << 5, 1 << 10


class Guest:
    """Memory that maps itself with pages of 4 KiB from table pages at its beginning."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.last = size >> 21  # tables of level 1
        self.tables = 2 + -(-size >> 30) + self.last
        self.root = PAGE

    def page(self, number: int) -> bytes | None:
        """A table; None if the page is not one."""
        at, middle = number - 1, -(-self.size >> 30)
        if not 0 <= at < self.tables:
            return None
        if at == 0:
            return self._entries([2 * PAGE])
        if at == 1:
            return self._entries([(3 + one) * PAGE for one in range(middle)])
        if at < 2 + middle:
            first = (at - 2) << 9
            many = min(512, self.last - first)
            return self._entries([(3 + middle + first + one) * PAGE for one in range(many)])
        first = (at - 2 - middle) << 21
        return self._entries(range(first, first + (512 << 12), PAGE))

    def _entries(self, targets: Sequence[int]) -> bytes:
        found = b"".join((target | 0x67).to_bytes(8, "little") for target in targets)
        return found.ljust(PAGE, b"\0")

    def write(self, path: Path) -> None:
        """Write its stream."""
        content = random.Random(1).randbytes(PAGE)
        whole = builders.stream([], [builders.zero(0, "pc.ram") + MARK], {"pc.ram": self.size})
        before, after = whole.split(MARK)
        with path.open("wb", buffering=MIB) as file:
            file.write(before)
            for number in range(1, self.size // PAGE):
                body = self.page(number) or content
                file.write((number * PAGE | SAME_PAGE).to_bytes(8, "big") + body)
            file.write(after)


def rate(name: str, work: Callable[[int], object], addresses: Sequence[int]) -> None:
    """How many a second: by wall and by CPU time."""
    for address in addresses[:1000]:
        work(address)
    wall, cpu = time.perf_counter(), time.process_time()
    for address in addresses:
        work(address)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"  {name:34}{len(addresses) / wall:12,.0f}{len(addresses) / max(cpu, 1e-9):12,.0f}")


def once(name: str, work: Callable[[], object]) -> None:
    """Milliseconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"  {name:34}{1e3 * wall:9.0f} ms{1e3 * cpu:9.0f} ms")


def ours(path: Path, guest: Guest, number: int) -> list[int]:
    """Measure this package; the addresses that were read."""
    chance = random.Random(2)
    addresses = [chance.randrange(PAGE, guest.size - 8) & ~7 for _ in range(number)]
    with open_source(str(path)) as source:
        machine = read_machine(read_stream(source))
        ram = read_ram(machine.stream)
        memory = GuestMemory(machine, ram)
        print(f"\nA guest of {guest.size // MIB} MiB\n  {'':34}{'wall':>12}{'CPU':>12}")
        once("first read once opened", lambda: memory.read(guest.size // 2, 64))
        paging = mode(PG, guest.root, PAE, LMA)
        l1 = Space(memory.physical, paging, world="l1v")
        nested = Space(memory.physical, paging, world="l2p", nested=True)
        l2 = Space(nested, paging, world="l2v")
        print(f"  {'':34}{'a second':>12}{'CPU second':>12}")
        rate("read_u64, physical", memory.read_u64, addresses)
        rate("read_u64, virtual", l1.read_u64, addresses)
        rate("walks", l1.translate, addresses)
        rate("two-dimensional walks", l2.locate, addresses)
        rate("read_u64, virtual in L2", l2.read_u64, addresses)
        rate("walks with every step", l2.walk, addresses[: number // 50])
        once(f"{guest.size // PAGE:,} leaves as runs", lambda: list(nested.runs()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  {'memory at most':34}{peak:9.0f} MiB")
    return addresses


def volatility(path: Path, addresses: Sequence[int]) -> None:
    """The same with volatility3's layer for QEMU streams, where it is installed."""
    try:
        from volatility3.framework import contexts
        from volatility3.framework.layers import physical, qemu
    except ImportError:
        print("\nvolatility3 is not installed")
        return
    context = contexts.Context()
    context.config["file.location"] = path.as_uri()
    context.layers.add_layer(physical.FileLayer(context, "file", "file"))
    context.config["stream.base_layer"] = "file"
    print("\nvolatility3's layer on the same stream")
    try:
        once("opened", lambda: context.layers.add_layer(
            qemu.QemuSuspendLayer(context, "stream", "stream")))  # fmt: skip
    except Exception as error:  # noqa: BLE001 - whatever it does not take
        print(f"  it does not read the stream: {error}")
        return
    layer = context.layers["stream"]
    print(f"  {'':34}{'a second':>12}{'CPU second':>12}")
    rate("8 bytes, physical", lambda address: layer.read(address, 8), addresses[:20_000])


@contextmanager
def qemu(folder: Path, size: int) -> Iterator[Path]:
    """A QEMU that does not run its guest of ``size`` bytes, all data; its QMP socket."""
    content, chance = folder / "memory", random.Random(3)
    with content.open("wb") as file:
        for _ in range(size // MIB):
            file.write(chance.randbytes(MIB))
    backend = f"memory-backend-file,id=ram,size={size},share=off,mem-path={content}"
    socket = folder / "qmp"
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-S", "-accel", "tcg", "-display", "none", "-nodefaults",
         "-machine", "pc,memory-backend=ram", "-m", f"{size}B", "-object", backend,
         "-qmp", f"unix:{socket},server=on,wait=off"],
    )  # fmt: skip
    try:
        while not socket.exists() and process.poll() is None:
            time.sleep(0.05)
        yield socket
    finally:
        process.kill()
        process.wait()
        content.unlink()


def cores(folder: Path, size: int, rounds: int) -> None:
    """Measure a core of a guest that is all data, beside ``cp`` and QEMU's own dump."""
    stream, work = folder / "guest.bin", folder / "work"
    commands = {
        "cp": ["cp", str(stream), "copy"],
        "mem core": [*PROGRAM, "mem", "core", str(stream), "-o", "core"],
    }
    title = f"A core of {size // MIB} MiB of data"
    if shutil.which("qemu-system-x86_64") is None:
        Guest(size).write(stream)
        table(title, take_turns(commands, rounds, work), ["cp"])
        return
    with qemu(folder, size) as socket:
        ask = [sys.executable, str(Path(__file__)), "--ask", str(socket)]
        subprocess.run([*ask, "migrate", f"exec:cat > {stream}"], check=True)
        commands["dump-guest-memory"] = [*ask, "dump-guest-memory", f"file:{work}/dump"]
        table(title, take_turns(commands, rounds, work), ["cp", "dump-guest-memory"])


def ask(socket: str, command: str, target: str) -> None:
    """Let a QEMU save or dump its guest, and wait for it."""
    with sync.connect(socket, timeout=600.0) as qmp:
        if command == "migrate":
            for name in ("max-bandwidth", "downtime-limit"):
                qmp.execute("migrate-set-parameters", {name: 1 << 40 if name[0] == "m" else 10000})
            qmp.execute("migrate", {"uri": target})
            while qmp.execute("query-migrate").get("status") != "completed":
                time.sleep(0.05)
        else:
            qmp.execute(command, {"paging": False, "protocol": target})


def main() -> None:
    """Generate, measure, remove."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048, help="MiB of the guest")
    parser.add_argument("--core-size", type=int, default=1024, help="MiB of the one for the core")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--number", type=int, default=200_000, help="addresses")
    parser.add_argument("--ask", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.ask:
        ask(*chosen.ask)
        return
    with tempfile.TemporaryDirectory(dir=spool_directory()) as folder:
        path = Path(folder) / "guest.bin"
        guest = Guest(chosen.size * MIB)
        guest.write(path)
        addresses = ours(path, guest, chosen.number)
        volatility(path, addresses)
        path.unlink()
        cores(Path(folder), chosen.core_size * MIB, chosen.rounds)


if __name__ == "__main__":
    main()
