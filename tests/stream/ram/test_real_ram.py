"""What is extracted from a stream of a real QEMU is what the guest has, byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from qemu_svm.findings.ram_diff import compare_ram
from qemu_svm.machine import read_machine
from qemu_svm.source import BytesSource, open_source
from qemu_svm.stream import read_stream
from qemu_svm.stream.ram.coverage import coverage
from qemu_svm.stream.ram.extract import extract
from qemu_svm.stream.ram.problems import is_complete
from qemu_svm.stream.ram.read import Ram, read_ram
from tests.support.real import MEMORY, MIB, PATTERN_AT, START, Guest, pattern, resend, sink, touch

pytestmark = pytest.mark.qemu

Streams = tuple[Path, list[Path]]


def plain(guest: Guest, folder: Path) -> Streams:
    guest.migrate(f"exec:cat>{folder}/main")
    guest.wait()
    return folder / "main", []


def compress(guest: Guest, folder: Path) -> Streams:
    guest.capabilities("compress")
    return plain(guest, folder)


def xbzrle(guest: Guest, folder: Path) -> Streams:
    pages = range(PATTERN_AT, PATTERN_AT + 48 * 4096, 4096)
    guest.capabilities("xbzrle", "pause-before-switchover")
    guest.parameters(max_bandwidth=2 * MIB, downtime_limit=1)
    guest.migrate(f"exec:cat>{folder}/main")
    resend(guest, pages)
    guest.parameters(max_bandwidth=1 << 32, downtime_limit=2000)
    guest.wait("pre-switchover")
    touch(guest, pages, 0xABCDEF)
    guest.run("migrate-continue", state="pre-switchover")
    guest.wait()
    return folder / "main", []


def background(guest: Guest, folder: Path) -> Streams:
    # QEMU wants a guest that ran for this.
    guest.run("cont")
    guest.run("stop")
    guest.keep()  # it may run on when the snapshot is done
    guest.capabilities("background-snapshot")
    return plain(guest, folder)


def multifd(method: str) -> Callable[[Guest, Path], Streams]:
    def save(guest: Guest, folder: Path) -> Streams:
        guest.capabilities("multifd")
        guest.parameters(multifd_channels=3, multifd_compression=method)
        with sink(folder / "sink") as got:
            guest.migrate(f"unix:{folder}/sink")
            guest.wait()
            main, others = got.streams()
        files = [folder / f"c{number}" for number in range(len(others))]
        for path, data in zip([folder / "main", *files], [main, *others], strict=True):
            path.write_bytes(data)
        return folder / "main", files

    return save


def mapped(*more: str, offset: int = 0) -> Callable[[Guest, Path], Streams]:
    def save(guest: Guest, folder: Path) -> Streams:
        guest.capabilities("mapped-ram", *more)
        path = folder / "main"
        path.write_bytes(b"something else".ljust(offset, b"."))
        guest.migrate(f"file:{path},offset={offset}" if offset else f"file:{path}")
        guest.wait()
        return Path(f"{path}#@{offset}") if offset else path, []

    return save


WAYS: dict[str, Callable[[Guest, Path], Streams]] = {
    "plain": plain,
    "compress": compress,
    "xbzrle": xbzrle,
    "background-snapshot": background,
    "multifd": multifd("none"),
    "multifd-zlib": multifd("zlib"),
    "multifd-zstd": multifd("zstd"),
    "mapped-ram": mapped(),
    "mapped-ram-offset": mapped(offset=0x11000),
    "mapped-ram-multifd": mapped("multifd", offset=1 << 20),
}
OLD = [way for way in WAYS if not way.startswith("mapped")]
NEW = [way for way in WAYS if way != "compress"]


def check(ram: Ram, truth: bytes, folder: Path) -> None:
    """RAM as extracted, and as read page by page, is the truth."""
    assert ram.problems == ()
    block = ram.block("pc.ram")
    with (folder / "out").open("w+b") as file:
        extract(ram, {block: file.fileno()})
        file.seek(START)
        assert file.read() == truth
    for at in range(START, MEMORY * MIB, 997 * 1024):
        assert ram.read(block, at, 5000) == truth[at - START : at - START + 5000]


@pytest.mark.parametrize(
    ("version", "way"), [("7.2", way) for way in OLD] + [("10.0", way) for way in NEW]
)
def test_every_way(version: str, way: str, tmp_path: Path) -> None:
    with Guest(tmp_path, version) as guest:
        main, channels = WAYS[way](guest, tmp_path)
        truth = guest.truth()
    assert way == "xbzrle" or truth[PATTERN_AT - START :].startswith(pattern())
    with open_source(str(main)) as source:
        others = [BytesSource(path.read_bytes()) for path in channels]
        stream = read_stream(source)
        ram = read_ram(stream, others)
        assert is_complete(stream, ram)
        counts = ram.counts()
        assert bool(counts.compressed) is (way == "compress")
        assert (counts.xbzrle >= 48) is (way == "xbzrle")
        assert bool(ram.channels) is way.startswith("multifd")
        assert sum(one.never for one in coverage(ram)) == 0
        check(ram, truth, tmp_path)
        ram.close()


@pytest.mark.parametrize("version", ["7.2", "10.0"])
def test_shared_memory_is_left_out(version: str, tmp_path: Path) -> None:
    memory = f"memory-backend-file,id=pc.ram,size={MEMORY}M,share=on,mem-path={tmp_path}/ram"
    more = ("-object", memory, "-machine", "memory-backend=pc.ram")
    with Guest(tmp_path, version, *more) as guest:
        guest.capabilities("x-ignore-shared")
        path, _ = plain(guest, tmp_path)
        truth = guest.truth()
    assert (tmp_path / "ram").read_bytes()[START:] == truth
    with open_source(str(path)) as source:
        stream = read_stream(source)
        assert stream.configuration is not None
        assert stream.configuration.capabilities == ("x-ignore-shared",)
        ram = read_ram(stream)
        assert is_complete(stream, ram)
        block = ram.block("pc.ram")
        one = coverage(ram)[block]
        assert (one.pages, one.never) == (MEMORY * 256, MEMORY * 256)
        bios = ram.block("pc.bios")
        assert coverage(ram)[bios].never == 0
        assert ram.read(bios, (256 << 10) - 16, 1) == b"\xea"  # the reset vector's far jump


def test_two_ways_give_the_same_ram(tmp_path: Path) -> None:
    found: list[Ram] = []
    for number, way in enumerate(("plain", "compress")):
        folder = tmp_path / str(number)
        folder.mkdir()
        with Guest(folder) as guest:
            path, _ = WAYS[way](guest, folder)
        found.append(read_ram(read_stream(BytesSource(path.read_bytes()))))
    blocks = {block.name: block for block in compare_ram(*found).blocks}
    assert blocks["pc.ram"].same == blocks["pc.ram"].pages


# Postcopy: pages for the last time over other connections.


def resumed(folder: Path) -> tuple[bytes, list[bytes], bytes]:
    """Postcopy that breaks off in the middle and goes on over a second connection."""
    with (
        sink(folder / "proxy") as proxy,
        Guest(folder, name="source") as source,
        Guest(folder, "7.2", "-incoming", "defer", name="target") as target,
    ):
        for guest in (source, target):
            guest.capabilities("postcopy-ram")
        proxy.behind = folder / "first"
        target.run("migrate-incoming", uri=f"unix:{proxy.behind}")
        source.parameters(max_bandwidth=MIB, downtime_limit=1, max_postcopy_bandwidth=MIB // 4)
        source.migrate(f"unix:{proxy.path}")
        source.run("migrate-start-postcopy")
        for guest in (source, target):
            guest.wait("postcopy-active")
        proxy.wait_for_more(50_000)
        proxy.cut()
        for guest in (source, target):
            guest.wait("postcopy-paused")
        proxy.behind = folder / "second"
        target.run("migrate-recover", uri=f"unix:{proxy.behind}")
        source.parameters(max_postcopy_bandwidth=0)
        source.run("migrate", uri=f"unix:{proxy.path}", resume=True)
        source.wait()
        target.wait()
        return *proxy.streams(), target.truth()


def test_postcopy_that_was_resumed(tmp_path: Path) -> None:
    main, others, truth = resumed(tmp_path)
    stream = read_stream(BytesSource(main))
    assert not stream.complete
    assert read_machine(stream).vcpus
    alone = read_ram(stream)
    assert not is_complete(stream, alone)
    assert any("were not sent again" in str(problem) for problem in alone.problems)
    ram = read_ram(stream, [BytesSource(data) for data in others])
    assert [extra.kind for extra in ram.extras] == ["resumed"]
    assert ram.resumed
    assert is_complete(stream, ram)
    block = ram.block("pc.ram")
    with (tmp_path / "out").open("w+b") as file:
        extract(ram, {block: file.fileno()})
        file.seek(START)
        assert file.read() == truth


def cut_at(data: bytes, places: Sequence[float]) -> list[bytes]:
    return [data[: int(len(data) * place)] for place in places]


def test_a_resumed_connection_that_is_cut(tmp_path: Path) -> None:
    main, (other,), _ = resumed(tmp_path)
    stream = read_stream(BytesSource(main))
    for data in cut_at(other, (0.1, 0.5, 0.999)):
        ram = read_ram(stream, [BytesSource(data)])
        assert not is_complete(stream, ram)
        assert all(0 <= problem.offset <= max(len(main), len(data)) for problem in ram.problems)
