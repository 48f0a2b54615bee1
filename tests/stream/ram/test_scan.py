"""The scanners: the same from each, whatever the bytes are."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qemu_svm.stream.ram import compiled
from qemu_svm.stream.ram.runs import KIND_BITS, PageKind, RamRuns, Rows
from qemu_svm.stream.ram.scan import (
    Found,
    Scanner,
    scan,
    scan_compiled,
    scan_file,
    scan_records,
    scan_runs,
)
from tests.support.builders import PAGE, counted, page, word, zero

TOP = 400 * PAGE | (PAGE - 1)
QUICK = (scan_runs, scan_compiled)


def found(scanner: Scanner, data: bytes, at: int, top: int, room: int) -> tuple[object, ...]:
    rows = Rows(room)
    behind, used, sums = scanner(data, at, 1 << 40, (PAGE, top), rows)
    kept = zip(rows.where[:used], rows.count[:used], rows.data[:used], strict=True)
    return behind, used, tuple(sums), list(kept)


def delta(offset: int, body: bytes = b"\0\1x", size: int | None = None, how: int = 1) -> bytes:
    length = len(body) if size is None else size
    return word(offset | 0x60) + bytes((how,)) + length.to_bytes(2, "big") + body


def test_the_compiled_one_is_used() -> None:
    assert compiled.ram is not None  # `make test` installs a compiler where there is none
    assert scan is scan_compiled


def unusual(offset: int) -> list[bytes]:
    return [
        word(0x10), word(0x200), word(offset | 0x1), word(offset | 0x28 | 0x80), b"junk", b"\0" * 9,
        word(offset | 0x08) + counted("m") + bytes(PAGE), zero(offset)[:-1] + b"\7",
        delta(offset, size=PAGE + 1), delta(offset, how=2), delta(offset, size=999),
        word(1 << 63 | 0x28), word((1 << 64) - PAGE | 0x22) + b"\0",
    ]  # fmt: skip


@st.composite
def windows(draw: st.DrawFn) -> bytes:
    """Records one after the other, most of them good, then cut and spoilt."""
    out, number = [], draw(st.integers(0, 20))
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["page", "zero", "zero", "delta", "unusual"]))
        count = draw(st.sampled_from([1, 1, 2, 15, 16, 17, 18, 100, 300]))
        if kind == "unusual":
            out.append(draw(st.sampled_from(unusual(number * PAGE))))
            continue
        make: Callable[[int], bytes] = {
            "page": lambda offset: page(offset, b"content"), "zero": zero, "delta": delta,
        }[kind]  # fmt: skip
        out += [make(n * PAGE) for n in range(number, number + count)]
        number = max(0, number + count + draw(st.sampled_from([0, 0, 0, 1, -3])))
    data = bytearray(b"".join(out))
    for _ in range(draw(st.integers(0, 2))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(len(data) // 2, len(data)))])


@settings(max_examples=300)
@given(
    windows(),
    st.sampled_from([0, 0, 0, 1, 9, 17]),
    st.sampled_from([TOP, TOP, 0, PAGE - 1, PAGE, 30 * PAGE, (1 << 64) - 1]),
    st.sampled_from([0, 1, 2, 4096]),
)
def test_all_scanners_agree(data: bytes, at: int, top: int, room: int) -> None:
    at = min(at, len(data))
    expected = found(scan_records, data, at, top, room)
    for scanner in QUICK:
        assert found(scanner, data, at, top, room) == expected


@settings(max_examples=200)
@given(st.binary(max_size=64), st.integers(0, 64))
def test_any_bytes(data: bytes, at: int) -> None:
    at = min(at, len(data))
    expected = found(scan_records, data, at, TOP, 8)
    for scanner in QUICK:
        assert found(scanner, data, at, TOP, 8) == expected


@pytest.mark.parametrize("scanner", [scan_records, *QUICK])
def test_what_is_found(scanner: Scanner) -> None:
    data = page(0, b"x") + page(PAGE, b"y") + zero(2 * PAGE) + delta(0) + page(PAGE, b"z")
    at = 2 * (PAGE + 8)
    base = 1 << 40
    assert found(scanner, data, 0, TOP, 9) == (
        len(data), 4, (0, 1, 3, 1),
        [(PageKind.PAGE, 2, base + 8), (2 << KIND_BITS | PageKind.ZERO, 1, base + at + 8),
         (PageKind.XBZRLE, 1, base + at + 17), (1 << KIND_BITS | PageKind.PAGE, 1, base + at + 31)],
    )  # fmt: skip
    # A page may come earlier in its block than the one before it.
    at += 9
    assert found(scanner, data, at, TOP, 9)[:3] == (len(data), 2, (0, 0, 1, 1))
    # The content of a page may go on behind the block of input.
    assert found(scanner, data[: PAGE // 2], 0, TOP, 9)[:2] == (PAGE + 8, 1)
    assert found(scanner, data, 0, TOP, 1)[:2] == (2 * (PAGE + 8), 1)


@pytest.mark.parametrize("kinds", ["pz", "zp", "ppz", "z" * 17 + "p", "d"])
def test_a_scan_takes_steps_in_proportion_to_the_records(kinds: str) -> None:
    # What comes out of a block goes in once: no record is looked at again.
    make = {"p": lambda offset: page(offset, b"x"), "z": zero, "d": delta}
    data = b"".join(make[kinds[n % len(kinds)]](n * PAGE) for n in range(1000))
    rows, at, calls = Rows(64), 0, 0
    while at < len(data):
        behind, used, _ = scan(data, at, 0, (PAGE, 2000 * PAGE), rows)
        assert behind > at
        assert used == 64 or behind == len(data)
        at, calls = behind, calls + 1
    assert calls <= 1000 // 64 + 1


def test_the_compiled_scanner_takes_no_nonsense() -> None:
    rows = Rows(4)
    data, where, count = rows.data, rows.where, rows.count
    assert compiled.ram.scan(b"", 0, 0, (PAGE, TOP), data, where, count)[:2] == (0, 0)
    for at, size in ((-1, PAGE), (1, PAGE), (0, 0), (0, 3), (0, PAGE + 1), (0, 1 << 40)):
        with pytest.raises(ValueError, match="position"):
            compiled.ram.scan(b"", at, 0, (size, TOP), data, where, count)
    with pytest.raises(ValueError, match="lengths"):
        compiled.ram.scan(b"", 0, 0, (PAGE, TOP), data, where, array("I", [0]))
    with pytest.raises(TypeError):
        compiled.ram.scan(b"", 0, 0, (PAGE, TOP), data, where, bytes(16))


@pytest.fixture(scope="module")
def descriptor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    path = tmp_path_factory.mktemp("scan") / "records"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def fill(fd: int, data: bytes) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, data, 0)


def all_of(scanner: Callable[[int, Rows], Found], at: int, rows: Rows) -> tuple[int, list[object]]:
    runs = RamRuns(PAGE)
    while True:
        behind, used, sums = scanner(at, rows)
        if not used:
            return at, [runs.sums, *runs]
        runs.extend(0, rows, used, sums)
        at = behind


@settings(max_examples=150)
@given(
    windows(), st.integers(0, 9), st.sampled_from([TOP, PAGE - 1, 30 * PAGE]),
    st.sampled_from([1, 3, 4096]), st.sampled_from([2 * PAGE + 9, 3 * PAGE + 1, 1 << 16, 1 << 20]),
)  # fmt: skip
def test_a_file_is_scanned_as_its_bytes_are(
    descriptor: int, data: bytes, front: int, top: int, room: int, step: int
) -> None:
    # However the windows lie in it, and whoever reads them.
    fill(descriptor, bytes(front) + data)
    rows, pages, file = Rows(room), (PAGE, top), (descriptor, front)
    expected = all_of(lambda at, rows: scan_records(data, at, 0, pages, rows), 0, rows)
    found = all_of(lambda at, rows: scan_file(file, at, pages, rows, step), 0, rows)
    assert found == expected


@pytest.mark.parametrize("kinds", ["p", "z", "pz", "d"])
def test_a_file_is_scanned_in_few_calls(descriptor: int, kinds: str) -> None:
    make = {"p": lambda offset: page(offset, b"x"), "z": zero, "d": delta}
    fill(descriptor, b"".join(make[kinds[n % len(kinds)]](n * PAGE) for n in range(3000)))
    rows, pages = Rows(4096), (PAGE, 3000 * PAGE | PAGE - 1)
    size = os.fstat(descriptor).st_size
    behind, used, sums = scan_file((descriptor, 0), 0, pages, rows, 2 * PAGE + 9)
    if size > 128 * (2 * PAGE + 9):  # no more of these in one call
        assert size > behind >= 128 * (2 * PAGE + 9)
        behind, used, sums = scan_file((descriptor, 0), 0, pages, rows)
    assert (behind, sum(sums), used) == (size, 3000, 3000 if kinds in ("pz", "d") else 1)


def test_the_file_scanner_takes_no_nonsense(descriptor: int) -> None:
    fill(descriptor, zero(0))
    rows = Rows(4)
    for start, step, size in (
        (-1, 1 << 20, PAGE), (1 << 62, 1 << 20, PAGE), (0, 2 * PAGE, PAGE), (0, 1 << 29, PAGE),
        (0, 1 << 20, 0), (0, 1 << 20, PAGE + 1), (0, 1 << 20, 1 << 25),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="invalid"):
            scan_file((descriptor, start), 0, (size, TOP), rows, step)
    assert scan_file((descriptor, 9), 0, (PAGE, TOP), rows)[1] == 0  # behind the end
    assert scan_file((1 << 20, 0), 0, (PAGE, TOP), rows)[1] == 0  # no such file
    with pytest.raises(ValueError, match="lengths"):
        compiled.ram.scan_file(
            descriptor, 0, 1 << 20, 0, (PAGE, TOP), rows.data, rows.where, array("I", [0])
        )


def test_one_processor_reads_alone(descriptor: int) -> None:
    fill(descriptor, b"".join(page(n * PAGE, b"x") for n in range(300)))
    rows, before = Rows(8), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        found = scan_file((descriptor, 0), 0, (PAGE, TOP), rows, 1 << 16)
    finally:
        os.sched_setaffinity(0, before)
    assert found == (300 * (PAGE + 8), 1, (0, 0, 300, 0))
