"""What is extracted is what the pages hold, and what was only zero is a hole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.errors import StreamError, Truncated
from qemu_svm.stream import read_stream
from qemu_svm.stream.ram_extract import extract
from qemu_svm.stream.ram_index import Ram, read_ram
from qemu_svm.stream.ram_runs import INPUT_SHIFT, PageKind
from tests import builders
from tests.builders import PAGE, Counting, page, word, zero

PAGES = 700


def ram_of(*records: bytes) -> tuple[Ram, Counting]:
    first = page(0, b"other", "n") + zero(0, "m")
    data = builders.stream([], [first + b"".join(records)], {"m": PAGES * PAGE, "n": PAGE})
    source = Counting(data)
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
    target: Path, runs: list[tuple[str, int, int]], span: tuple[int, int] | None
) -> None:
    ram, _ = ram_of(*sent(runs))
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
    first = next(run.data for run in ram.runs if run.kind is PageKind.PAGE)
    runs = type(ram.runs)(PAGE)
    for number in range(0, PAGES, 100):
        runs.add(0, number, 1, PageKind.PLACED, first + number * (PAGE + 8))
    extracted(type(ram)(ram.entries, runs, PAGE, ram.sources, (), 0, ()), target)
    assert source.bytes <= 7 * PAGE + (64 << 10)


def test_a_page_that_the_input_lost(target: Path) -> None:
    ram, _ = ram_of(*(page(n * PAGE, b"x") for n in range(8)))
    ram.runs.add(0, 9, 1, PageKind.PLACED, 1 << (INPUT_SHIFT - 1))
    with pytest.raises(Truncated):
        extracted(ram, target)


def test_a_damaged_delta(target: Path) -> None:
    ram, _ = ram_of(page(0, b"x"), delta(0, 5)[:-3] + b"\5\0x")
    with pytest.raises(StreamError):
        extracted(ram, target)
