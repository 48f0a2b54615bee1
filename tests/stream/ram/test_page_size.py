"""The page size of streams that do not state it, made and real."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from qemu_svm.source import BytesSource, open_source
from qemu_svm.stream import Stream, Walk, read_stream
from qemu_svm.stream.ram.coverage import coverage
from qemu_svm.stream.ram.read import read_ram
from tests.conftest import STREAMS, Run
from tests.support import builders
from tests.support.builders import EOS, RecordType, counted, word, zero

BOARDS = STREAMS / "boards"
SIZES = [1 << bits for bits in range(8, 17)]


def board(
    size: int,
    pages: list[bytes],
    *,
    machine: str = "board",
    footers: bool = True,
    tail: bytes = b"",
) -> bytes:
    """A stream without a description; empty pages are zero pages."""
    records = []
    for number, content in enumerate(pages):
        flags, name = (0x20, b"") if number else (0, counted("board.ram"))
        if content:
            records.append(word(number * size | flags | 0x08) + name + content)
        else:
            records.append(word(number * size | flags | 0x02) + name + b"\0")
    half = len(pages) // 2
    parts = [b"".join(records[:half]) + EOS, b"".join(records[half:]) + EOS]
    start = builders.block_list({"board.ram": max(1, len(pages)) * size}) + EOS
    return b"".join([
        builders.header(), builders.configuration(machine),
        builders.named(RecordType.START, 7, "ram", 0, 4, start, footers=footers),
        builders.referring(RecordType.PART, 7, parts[0], footers=footers),
        builders.referring(RecordType.END, 7, parts[1], footers=footers),
        tail, b"\0",
    ])  # fmt: skip


def read(data: bytes, walk: Walk = Walk.RAM, page_size: int | None = None) -> Stream:
    return read_stream(BytesSource(data), walk=walk, page_size=page_size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("footers", [True, False])
@pytest.mark.parametrize("full", [0, 1, 3, 40])
def test_every_page_size(size: int, footers: bool, full: int) -> None:
    chance = random.Random(size + full)
    pages = [b""] * 40
    for number in chance.sample(range(40), full):
        # Content of every sort: code, text, tables, mostly zeros.
        filler = chance.choice([chance.randbytes(size), b"text " * size, bytes(size - 1)])
        pages[number] = (b"\1" + filler)[:size]
    stream = read(board(size, pages, footers=footers))
    assert stream.problems == ()
    assert stream.complete
    assert (stream.page_size, stream.page_size_from[:15]) == (size, "40 page records")
    ram = read_ram(stream)
    assert ram.problems == ()
    assert [ram.read_page(0, n) for n in range(40)] == [page or bytes(size) for page in pages]


@pytest.mark.parametrize("pages", [0, 1, 2])
def test_too_few_records_say_nothing(pages: int) -> None:
    stream = read(board(4096, [b""] * pages))
    assert (stream.page_size, stream.page_size_from) == (4096, "assumed")
    assert stream.complete


def test_a_pc_has_pages_of_4096_bytes() -> None:
    # Its records are not looked at, so damage in them is reported and not explained away.
    for machine in ("pc-i440fx-10.0", "pc-q35-9.2", "microvm", "isapc"):
        stream = read(board(8192, [b"x" * 8192] * 8, machine=machine))
        assert (stream.page_size, stream.page_size_from) == (4096, "x86 machine")
        assert stream.problems


def test_what_the_stream_states_comes_first() -> None:
    bits = builders.subsection("configuration/target-page-bits", 1, (13).to_bytes(4, "big"))
    data = board(8192, [b"x" * 8192] * 8)
    plain, at = builders.configuration("board"), len(builders.header())
    assert data[at:].startswith(plain)
    stream = read(data[:at] + builders.configuration("board", bits) + data[at + len(plain) :])
    assert (stream.page_size, stream.page_size_from) == (8192, "configuration")
    assert stream.problems == ()
    given = read(data, page_size=1024)
    assert (given.page_size, given.page_size_from) == (1024, "given")
    assert given.problems


@pytest.mark.parametrize("size", [3, 0, 128, 1 << 25, 1 << 40])
def test_a_description_with_an_impossible_page_size(size: int) -> None:
    data = builders.stream([], [builders.page(0, b"x", "m") + zero(4096)], {"m": 2 * 4096})
    text = json.dumps({"page_size": size, "devices": []}).encode()
    at = data.index(b"\6", data.rindex(EOS))
    stream = read(data[:at] + b"\6" + len(text).to_bytes(4, "big") + text)
    assert stream.page_size == 4096
    assert stream.complete


@pytest.mark.parametrize("size", [256, 512])
def test_a_small_page_size_that_is_wrong_gives_only_our_errors(size: int) -> None:
    data = builders.stream([], [builders.page(0, b"x" * 99, "m") + zero(4096)], {"m": 2 * 4096})
    text = json.dumps({"page_size": size, "devices": []}).encode()
    at = data.index(b"\6", data.rindex(EOS))
    for walk in Walk:
        stream = read(data[:at] + b"\6" + len(text).to_bytes(4, "big") + text, walk)
        assert stream.page_size == size
        read_ram(stream).close()


REAL = json.loads((BOARDS / "boards.json").read_text())


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("walk", Walk)
def test_real_boards(name: str, walk: Walk) -> None:
    entry = REAL[name]
    with open_source(str(BOARDS / f"{name}.mig.zst")) as source:
        stream = read_stream(source, walk=walk)
        assert (stream.page_size, stream.complete, stream.problems) == (
            entry["page_size"], True, (),
        )  # fmt: skip
        described = stream.description is not None
        assert described is entry["described"]
        if not described:
            stated = "configuration" if name == "virt-arm" else "page records fit"
            assert stated in stream.page_size_from
        ram = read_ram(stream)
        assert ram.problems == ()
        assert sum(part.never for part in coverage(ram)) == 0


def test_it_is_said(command: Run, tmp_path: Path) -> None:
    path = tmp_path / "dump.bin"
    path.write_bytes(board(8192, [b"x" * 8192] * 8))
    done = command("ram", path)
    assert b"page size    8 KiB (8 page records fit no other)" in done.stdout
    assert b"page size    8 KiB (8 page records" in command("inspect", path).stdout
    made = json.loads(command("ram", "--json", path).stdout)
    assert (made["page_size"], made["page_size_from"]) == (8192, "8 page records fit no other")
    done = command("ram", "--page-size", "4K", path)
    assert done.returncode == 3
    assert b"4 KiB (given)" in done.stdout
    for wrong in ("3", "x", "128", "32M"):
        done = command("ram", "--page-size", wrong, path)
        assert done.returncode == 2
        assert b"--page-size" in done.stderr
    assert command("diff", "--ram", path, path).returncode == 0
