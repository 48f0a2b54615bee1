"""multifd channels: made ones, and those of a real QEMU."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import zstandard

from qemu_svm.errors import Malformed, StreamError, Truncated, Unsupported
from qemu_svm.source import BytesSource, open_source
from qemu_svm.stream import read_stream
from qemu_svm.stream.ram.read import Ram, read_ram
from tests.conftest import STREAMS, Run
from tests.support import builders
from tests.support.builders import PAGE, word, zero

ROOM = 128
Pack = Callable[[bytes], bytes]


def initial(number: int) -> bytes:
    return (0x11223344).to_bytes(4, "big") + b"\0\0\0\1" + bytes(16) + bytes((number,)) + bytes(39)


def packet(
    number: int,
    pages: dict[int, int] | None = None,
    zeros: Sequence[int] = (),
    *,
    flags: int = 0,
    pack: Pack = bytes,
    stale: int = 0,
    block: str = "pc.ram",
) -> bytes:
    pages = pages or {}
    body = b"".join(bytes((fill,)) * PAGE for fill in pages.values())
    body = pack(body) if body else b""
    head = b"".join(
        value.to_bytes(4, "big")
        for value in (0x11223344, 1, flags, ROOM, len(pages), stale or len(body))
    )
    head += word(number) + len(zeros).to_bytes(4, "big") + bytes(28)
    offsets = [*pages, *zeros]
    table = b"".join(word(page * PAGE) for page in offsets).ljust(8 * ROOM, b"\0")
    return head + block.encode().ljust(256, b"\0") + table + body


def streaming(method: str) -> Pack:
    if method == "zlib":
        packer = zlib.compressobj()
        return lambda data: packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)
    if method == "zstd":
        writer = zstandard.ZstdCompressor().compressobj()
        return lambda data: writer.compress(data) + writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return bytes


def main_stream(parts: Sequence[bytes], flush: bytes) -> bytes:
    data = builders.stream([], [part + flush for part in parts], {"pc.ram": 64 * PAGE})
    start = builders.block_list({"pc.ram": 64 * PAGE})
    return data.replace(start, start + flush, 1)


def merged(main: bytes, *channels: bytes) -> Ram:
    return read_ram(read_stream(BytesSource(main)), [BytesSource(data) for data in channels])


@pytest.mark.parametrize(("method", "bit"), [("none", 0), ("zlib", 2), ("zstd", 4)])
def test_channels_of_9_0_and_later(method: str, bit: int) -> None:
    one, two = streaming(method), streaming(method)
    sync = {"flags": 1}
    first = (
        initial(0)
        + packet(0, **sync)
        + packet(2, {0: 10, 1: 11, 5: 15}, [6, 7], flags=bit, pack=one)
        + packet(4, **sync)
        + packet(7, {0: 90}, flags=bit, pack=one)
        + packet(8, **sync)
    )
    second = (
        initial(1)
        + packet(1, **sync)
        + packet(3, {9: 19}, flags=bit, pack=two)
        + packet(5, **sync)
        + packet(6, {2: 22, 3: 23}, [5], flags=bit, pack=two)
        + packet(9, **sync)
    )
    main = main_stream([b"", b""], word(0x200))
    for channels in ((first, second), (second, first)):
        ram = merged(main, *channels)
        assert ram.problems == ()
        assert [channel.number for channel in ram.channels] == [0, 1]
        assert [channel.epochs for channel in ram.channels] == [3, 3]
        assert all(channel.methods == (method,) for channel in ram.channels)
        got = [ram.read_page(0, number) for number in range(10)]
        assert [set(page) for page in got] == [
            {fill} for fill in (90, 11, 22, 23, 0, 0, 0, 0, 0, 19)
        ]
        assert ram.counts().normal == 7
        assert ram.counts().zero == 3


def test_before_9_0_zero_pages_are_in_the_main_stream() -> None:
    # SYNC rides on a packet with pages; a packet without any has a stale length.
    main = main_stream([zero(1 * PAGE, "pc.ram"), zero(0)], b"")
    channel = (
        initial(0)
        + packet(0, flags=1)
        + packet(1, {0: 5, 2: 7}, flags=1)
        + packet(3, {1: 9}, flags=1)  # 2 was given out, and the packet sent as another 3
        + packet(3, flags=1, stale=4096)
    )
    ram = merged(main, channel)
    assert ram.problems == ()
    assert [ram.read_page(0, number)[0] for number in range(3)] == [0, 9, 7]


def test_a_packet_that_never_came() -> None:
    # As above, but the channel closed before the empty packet was sent.
    main = main_stream([zero(0, "pc.ram")], b"")
    head = initial(0) + packet(0, flags=1)
    assert merged(main, head + packet(2, {1: 5}, flags=1) + packet(3, flags=1)).problems == ()
    (problem,) = merged(main, head + packet(3, {1: 5}, flags=1) + packet(4, flags=1)).problems
    assert "are missing" in problem.what


def test_device_state_is_stepped_over() -> None:
    state = (0x11223344).to_bytes(4, "big") + b"\0\0\0\1" + (64).to_bytes(4, "big")
    state += bytes(256) + b"\0\0\0\0" + (5).to_bytes(4, "big") + b"vfio!"
    channel = initial(0) + state + packet(0, {3: 3}, flags=1)
    ram = merged(main_stream([], word(0x200)), channel)
    assert ram.problems == ()
    assert ram.read_page(0, 3)[0] == 3


@pytest.mark.parametrize(
    ("method", "tail", "error"),
    [
        ("none", bytes(1344), Malformed),
        ("none", packet(0, {0: 1})[:-1], Truncated),
        ("none", packet(0, {0: 1})[:100], Truncated),
        ("none", packet(0, {0: 1}, flags=2), Unsupported),
        ("none", packet(0, {0: 1}, flags=8), Unsupported),
        ("none", packet(0, {0: 1}, stale=7), Malformed),
        ("none", packet(0, {64: 1}), Malformed),
        ("none", packet(0, {0: 1}, block="vga"), Malformed),
        ("none", packet(0, dict.fromkeys(range(60), 1), range(69)), Malformed),
        ("zlib", packet(0, {0: 1}, flags=2), Malformed),
        ("zlib", packet(0, {0: 1}), Malformed),
        ("zstd", packet(0, {0: 1}, flags=4), Malformed),
        ("zstd", packet(0, {0: 1}, flags=4, pack=lambda _: b"12")[:-1], Truncated),
    ],
)
def test_damaged_channels(method: str, tail: bytes, error: type[StreamError]) -> None:
    bit = {"none": 0, "zlib": 2, "zstd": 4}[method]
    good = packet(0, {7: 7}, flags=1 | bit, pack=streaming(method))
    ram = merged(main_stream([], word(0x200)), initial(0) + good + tail)
    assert isinstance(ram.problems[0], error)
    assert "multifd channel 0" in str(ram.problems[0])
    assert [run.page for run in ram.runs][:1] == [7]


def test_a_channel_that_unpacks_to_more_than_it_says() -> None:
    twice = packet(0, {0: 1}, flags=2, pack=lambda data: zlib.compress(data + data))
    ram = merged(main_stream([], word(0x200)), initial(0) + twice)
    assert isinstance(ram.problems[0], Malformed)
    assert ram.runs.records == 0


@pytest.mark.parametrize("data", [b"", b"QEVM" * 30, initial(0)[:60], b"\x11\x22\x33\x44" * 20])
def test_what_is_no_channel(data: bytes) -> None:
    with pytest.raises(StreamError):
        merged(main_stream([], word(0x200)), data)


def test_the_verb_asks_for_channels(command: Run, tmp_path: Path) -> None:
    (tmp_path / "main").write_bytes(main_stream([b""], word(0x200)))
    (tmp_path / "c0").write_bytes(initial(0) + packet(0, flags=1) + packet(1, {1: 1}, flags=1))
    done = command("ram", tmp_path / "main")
    assert done.returncode == 3
    assert b"--channel" in done.stderr
    asked = json.loads(command("ram", "--json", tmp_path / "main").stdout)
    assert (asked["complete"], len(asked["problems"])) == (False, 1)
    done = command("diff", "--ram", tmp_path / "main", tmp_path / "main")
    assert done.returncode == 3
    assert b"--channel-a" in done.stderr
    done = command("ram", "--json", "--channel", tmp_path / "c0", tmp_path / "main")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["channels"] == [
        {"number": 0, "methods": ["none"], "packets": 1, "epochs": 2}
    ]


# Channels that are missing, or are of another stream.


def real(name: str) -> tuple[Path, list[Path]]:
    kinds = STREAMS / "kinds"
    return kinds / f"{name}.mig.zst", sorted(kinds.glob(f"{name}.channel*.zst"))


def opened(main: Path, channels: Sequence[Path]) -> Ram:
    with open_source(str(main)) as source:
        stream = read_stream(source)
        ram = read_ram(stream, [BytesSource(unpacked(path)) for path in channels])
        ram.close()
        return ram


def unpacked(path: Path) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())


NAMES = ["qemu7.2-multifd", "qemu10.0-multifd", "qemu10.0-multifd-zlib", "qemu10.0-multifd-zstd"]


@pytest.mark.parametrize("name", NAMES)
def test_all_channels_of_a_real_stream_are_needed(name: str) -> None:
    main, channels = real(name)
    assert len(channels) == 2
    assert opened(main, channels).problems == ()
    assert opened(main, channels[::-1]).problems == ()
    for one in channels:
        (problem,) = opened(main, [one]).problems
        assert isinstance(problem, Truncated)
        assert "are missing" in problem.what
        assert "--channel" in str(problem)
        (problem,) = opened(main, [one, one, channels[0]]).problems
        assert "is given twice" in problem.what
    (problem,) = opened(main, []).problems
    assert "sent over multifd channels" in problem.what


def test_channels_of_another_stream() -> None:
    main, channels = real("qemu10.0-multifd")
    other_main, others = real("qemu7.2-multifd")
    for stream, wrong in ((main, others), (other_main, channels)):
        (problem,) = opened(stream, wrong).problems
        assert "does not belong to this stream" in problem.what
    plain, _ = real("qemu10.0-resent")
    assert "does not belong" in opened(plain, channels).problems[0].what


def test_channels_of_two_guests() -> None:
    sync = packet(0, flags=1)
    other = initial(1)
    other = other[:8] + b"u" * 16 + other[24:]
    ram = merged(main_stream([], word(0x200)), initial(0) + sync, other + packet(1, flags=1))
    (problem,) = ram.problems
    assert "different guests" in problem.what
