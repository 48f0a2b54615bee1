"""What is extracted is what the pages hold, and what was only zero is a hole."""

from __future__ import annotations

import fcntl
import os
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import EnvironmentFault, StreamError, Truncated
from qemu_svm.source import BytesSource, FileSource, Source
from qemu_svm.stream import read_stream
from qemu_svm.stream.ram import compiled
from qemu_svm.stream.ram.extract import extract
from qemu_svm.stream.ram.read import Ram, read_ram
from qemu_svm.stream.ram.runs import INPUT_SHIFT, PageKind, Place
from tests.support import builders
from tests.support.builders import PAGE, Counting, page, word, zero

PAGES = 700


def stream_of(*records: bytes) -> bytes:
    first = page(0, b"other", "n") + zero(0, "m")
    return builders.stream([], [first + b"".join(records)], {"m": PAGES * PAGE, "n": PAGE})


def ram_of(*records: bytes) -> tuple[Ram, Counting]:
    source = Counting(stream_of(*records))
    ram = read_ram(read_stream(source))
    source.calls = source.bytes = 0
    return ram, source


def extracted(ram: Ram, path: Path, span: tuple[int, int] | None = None, block: int = 0) -> int:
    """Extract a block to a new file; returns the bytes that the file takes."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        extract(ram, {block: fd}, span)
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


def in_file(path: Path, data: bytes) -> FileSource:
    path.write_bytes(data)
    return FileSource(os.open(path, os.O_RDONLY), "test")


Opened = Callable[[bytes], Source]


@pytest.fixture(scope="module", params=["in memory", "in a file"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Gives bytes as a source: with a file, which the compiled part reads, or without."""
    path = tmp_path_factory.mktemp("input") / "stream"
    return (lambda data: in_file(path, data)) if "file" in request.param else BytesSource


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("extract") / "m"


def delta(offset: int, place: int) -> bytes:
    # A difference: one new byte at ``place``.
    same = bytes((place,)) if place < 128 else bytes((place & 0x7F | 0x80, place >> 7))
    return word(offset | 0x60) + b"\1" + (len(same) + 2).to_bytes(2, "big") + same + b"\1x"


SENT = st.lists(
    st.tuples(
        st.sampled_from(["page", "page", "zero", "zero", "fill", "delta"]),
        st.integers(0, PAGES - 1),
        st.sampled_from([1, 1, 2, 3, 40, 300]),
    ),
    max_size=12,
)
SPANS = st.none() | st.tuples(st.integers(0, PAGES), st.integers(1, PAGES)).map(
    lambda span: (span[0] * PAGE, (span[0] + span[1]) * PAGE)
)


def sent(runs: Sequence[tuple[str, int, int]]) -> list[bytes]:
    def record(kind: str, number: int, at: int) -> bytes:
        if kind == "page":
            return page(at, bytes((number + 1,)) * PAGE)
        if kind == "delta":
            return delta(at, 10 * number)
        return zero(at) if kind == "zero" else zero(at)[:-1] + b"\xaa"

    return [
        record(kind, number, place * PAGE)
        for number, (kind, first, count) in enumerate(runs)
        for place in range(first, min(first + count, PAGES))
    ]


@settings(max_examples=60)
@given(runs=SENT, span=SPANS)
def test_files_hold_what_the_pages_hold(
    opened: Opened, target: Path, runs: list[tuple[str, int, int]], span: tuple[int, int] | None
) -> None:
    with opened(stream_of(*sent(runs))) as source:
        ram = read_ram(read_stream(source))
        assert ram.problems == ()
        took = extracted(ram, target, span)
        start, end = span or (0, PAGES * PAGE)
        wanted = ram.read(0, start, end - start)
    assert target.read_bytes() == wanted
    touched = {at for kind, first, count in runs if kind != "zero"
               for at in range(first, first + count)}  # fmt: skip
    assert took <= (len(touched) + 1) * PAGE


def test_zero_pages_are_holes_whatever_lies_between(target: Path) -> None:
    records = [page(n * PAGE, b"x") if n % 2 else zero(n * PAGE) for n in range(PAGES)]
    ram, _ = ram_of(*records)
    assert extracted(ram, target) <= (PAGES // 2 + 1) * PAGE
    assert target.stat().st_size == PAGES * PAGE


def test_another_block_is_left_alone(target: Path) -> None:
    ram, _ = ram_of(page(0, b"first"), page(0, b"other", "n"))
    extracted(ram, target, block=1)
    assert target.read_bytes() == b"other".ljust(PAGE, b"\0")


def test_a_block_that_ends_inside_a_page(opened: Opened, tmp_path: Path) -> None:
    records = page(0, b"x", "m") + page(0, b"y", "n")
    with opened(builders.stream([], [records], {"m": 100, "n": 3996})) as source:
        ram = read_ram(read_stream(source))
        for block, (start, size) in enumerate([(b"x", 100), (b"y", 3996)]):
            extracted(ram, tmp_path / "out", block=block)
            assert (tmp_path / "out").read_bytes() == start.ljust(size, b"\0")


@pytest.mark.parametrize("kinds", ["p", "pz", "ppzz", "z", "p" * 50 + "z" * 50])
def test_input_is_read_once_in_good_pieces(target: Path, kinds: str) -> None:
    records = [(page(n * PAGE, b"x") if kinds[n % len(kinds)] == "p" else zero(n * PAGE))
               for n in range(PAGES)]  # fmt: skip
    ram, source = ram_of(*records)
    extracted(ram, target)
    size = source.size()
    assert source.bytes <= size + size // 4
    assert source.calls <= 4 + size // (256 << 10)


def test_pages_far_apart_are_read_without_what_is_between(target: Path) -> None:
    ram, source = ram_of(*(page(n * PAGE, b"x") for n in range(PAGES)))
    first = next(run.place.offset for run in ram.runs if run.kind is PageKind.PAGE)
    runs = type(ram.runs)(PAGE)
    for number in range(0, PAGES, 100):
        runs.add(0, number, 1, PageKind.PLACED, Place(0, first + number * (PAGE + 8)))
    extracted(type(ram)(ram.entries, runs, PAGE, ram.inputs, (), 0, ()), target)
    assert source.bytes <= 7 * PAGE + (64 << 10)


def test_a_page_that_the_input_lost(target: Path) -> None:
    ram, _ = ram_of(*(page(n * PAGE, b"x") for n in range(8)))
    ram.runs.add(0, 9, 1, PageKind.PLACED, Place(0, 1 << (INPUT_SHIFT - 1)))
    with pytest.raises(Truncated):
        extracted(ram, target)


def test_a_damaged_delta(target: Path) -> None:
    ram, _ = ram_of(page(0, b"x"), delta(0, 5)[:-3] + b"\5\0x")
    with pytest.raises(StreamError):
        extracted(ram, target)


def placed(ram: Ram, *runs: tuple[int, int, int]) -> Ram:
    """The same RAM, but with these ``(page, count, data)`` of pages next to one another."""
    changed = type(ram.runs)(PAGE)
    for first, count, data in runs:
        changed.add(0, first, count, PageKind.PLACED, Place(0, data))
    return type(ram)(ram.entries, changed, PAGE, ram.inputs, (), 0, ())


def test_a_file_that_shrank(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with in_file(path, stream_of(*(page(n * PAGE, b"x") for n in range(600)))) as source:
        ram = read_ram(read_stream(source))
        os.truncate(path, 300 * PAGE)
        with pytest.raises(Truncated) as caught:
            extracted(ram, tmp_path / "out")
    assert caught.value.offset == 300 * PAGE
    # What was there has been written.
    assert (tmp_path / "out").read_bytes()[: 290 * PAGE] == b"x".ljust(PAGE, b"\0") * 290


def test_an_output_that_takes_nothing_says_so(tmp_path: Path) -> None:
    with in_file(tmp_path / "stream", stream_of(page(PAGE, b"x"))) as source:
        ram = read_ram(read_stream(source))
        # What can be set to a length, but not be written.
        out = os.memfd_create("out", os.MFD_ALLOW_SEALING)
        fcntl.fcntl(out, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        try:
            with pytest.raises(PermissionError):
                extract(ram, {0: out})
        finally:
            os.close(out)


def test_long_runs_are_done_in_portions(tmp_path: Path) -> None:
    # 300 MiB of holes in the input, with a mark here and there.
    pages = 75_000
    path = tmp_path / "stream"
    with in_file(path, builders.stream([], [zero(0, "m")], {"m": pages * PAGE})) as source:
        ram = read_ram(read_stream(source))
        start = 1 << 20
        os.truncate(path, start + pages * PAGE)
        with path.open("r+b") as file:
            for number in range(0, pages, 5000):
                file.seek(start + number * PAGE + 100)
                file.write(b"mark %d" % number)
        out = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT, 0o600)
        told: list[int] = []
        try:
            extract(placed(ram, (0, 60_000, start), (60_000, 15_000, start + 60_000 * PAGE)),
                    {0: out}, progress=told.append)  # fmt: skip
            for number in range(0, pages, 5000):
                wanted = b"mark %d\0" % number
                assert os.pread(out, len(wanted), number * PAGE + 100) == wanted
        finally:
            os.close(out)
    assert told[-1] == pages
    assert max(after - before for before, after in zip([0, *told], told, strict=False)) <= 1 << 14


def test_a_block_that_no_guest_has(tmp_path: Path) -> None:
    ram = read_ram(read_stream(BytesSource(builders.stream([], [zero(0, "m")], {"m": 1 << 62}))))
    with pytest.raises(EnvironmentFault, match="holds no file of 0x4000000000000000 bytes"):
        extracted(ram, tmp_path / "out")
    extracted(ram, tmp_path / "out", span=(1 << 40, (1 << 40) + PAGE))
    assert (tmp_path / "out").read_bytes() == bytes(PAGE)


def test_the_compiled_copy_takes_no_nonsense(tmp_path: Path) -> None:
    inputs, where = array("q", [-1, 0]), array("Q", [PageKind.PAGE])
    count, data = array("I", [1]), array("Q", [0])
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for size, rows, row in (
            (0, data, 0), (PAGE + 1, data, 0), (1 << 20, data, 0),
            (PAGE, data * 2, 0), (PAGE, data, -1), (PAGE, data, 2),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="runs"):
                compiled.ram.copy(inputs, fd, 0, 9, size, where, count, rows, row)
        # Nothing of these is for it: no file, another input, pages outside, another kind.
        outside = PageKind.PAGE | 9 << 3
        for place, number in ((where[0], 0), (where[0], 1 << INPUT_SHIFT), (outside, 0),
                              (int(PageKind.XBZRLE), 0)):  # fmt: skip
            copied = compiled.ram.copy(inputs, fd, 0, 9, PAGE, array("Q", [place]),
                                       count, array("Q", [number]), 0)  # fmt: skip
            assert copied == 0
        assert compiled.ram.copy(inputs, fd, 0, 9, PAGE, where, count, data, 1) == 1
    finally:
        os.close(fd)
