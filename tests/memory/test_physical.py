"""L1-physical memory: every kind of page, and what is missing."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qemu_svm as svm
from qemu_svm.errors import AddressError, SvmStreamError
from qemu_svm.memory.layout import Use
from qemu_svm.memory.results import Status
from tests.conftest import STREAMS
from tests.memory.support import made, opened

KINDS = sorted(
    path.name
    for path in (STREAMS / "kinds").glob("*.mig.zst")
    if not any(word in path.name for word in ("multifd-z", "htab", "s390x", "dirty", "slirp"))
)
PAGE = 4096


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_stream_reads_as_its_pages(name: str) -> None:
    with opened(STREAMS / "kinds" / name) as memory:
        ram, physical = memory.ram, memory.physical
        sent = 0
        for one in memory.layout.ranges:
            for at in range(0, one.size, 7 * PAGE):
                number = (one.offset + at) // PAGE
                if ram.was_sent(one.block, number):
                    expected = ram.read_page(one.block, number)
                    assert physical.read(one.start + at, PAGE) == expected
                    word = int.from_bytes(expected[8:16], "little")
                    assert physical.read_u64(one.start + at + 8) == word
                    sent += 1
                else:
                    assert physical.state(one.start + at) is Status.NOT_SENT
        assert sent or "ignore-shared" in name or "multifd" in name


@pytest.fixture(scope="module")
def small() -> object:
    return made({0: b"\1" * PAGE, PAGE: b"\2" * PAGE, 5 * PAGE: bytes(range(256)) * 16})


def test_unknown_never_sent_and_zero_are_three_things(small) -> None:  # type: ignore[no-untyped-def]
    assert small.physical.state(0) is Status.MAPPED
    assert small.physical.state(2 * PAGE) is Status.NOT_SENT
    assert small.physical.state(1 << 30) is Status.NO_RAM
    with pytest.raises(AddressError, match="never sent") as never:
        small.read(PAGE, 2 * PAGE)
    assert (never.value.address, never.value.status) == (2 * PAGE, "not-sent")
    with pytest.raises(AddressError, match="no RAM") as none:
        small.read(1 << 30, 1)
    assert none.value.status == "no-ram"
    for address, size in ((-1, 1), (0, -1), (1 << 64, 8), (1 << 70, 1)):
        with pytest.raises(AddressError):
            small.read(address, size)
    assert small.read(1 << 30, 0) == b""


def test_pieces_say_what_is_missing(small) -> None:  # type: ignore[no-untyped-def]
    found = list(small.pieces(PAGE - 4, 5 * PAGE))
    assert b"".join(one.data for one in found[:-2]) == b"\1" * 4 + b"\2" * PAGE
    assert [(one.address, one.size, one.status) for one in found[-2:]] == [
        (2 * PAGE, 3 * PAGE, Status.NOT_SENT), (5 * PAGE, PAGE - 4, Status.MAPPED),
    ]  # fmt: skip


@given(st.integers(0, 8 * PAGE), st.integers(0, 8 * PAGE))
@settings(max_examples=60)
def test_pieces_and_read_agree(address: int, size: int) -> None:
    memory = made({0: b"\1" * PAGE, PAGE: b"\2" * PAGE, 5 * PAGE: bytes(range(256)) * 16})
    pieces = list(memory.pieces(address, size))
    assert sum(one.size for one in pieces) == size
    assert all(a.address + a.size == b.address for a, b in itertools.pairwise(pieces))
    if all(one.status is Status.MAPPED for one in pieces):
        assert memory.read(address, size) == b"".join(one.data for one in pieces)
    else:
        with pytest.raises(AddressError):
            memory.read(address, size)


def test_a_cut_stream_has_pages_that_were_never_sent(tmp_path: Path, sample: bytes) -> None:
    path = tmp_path / "cut.bin"
    path.write_bytes(sample[: len(sample) // 3])
    with opened(path) as memory:
        states = {memory.physical.state(at) for at in range(0, 32 << 20, PAGE)}
        assert states == {Status.MAPPED, Status.NOT_SENT}
        for at in range(0, 32 << 20, 64 * PAGE):
            try:
                memory.read(at, 32)
            except SvmStreamError:
                continue


def test_a_range_of_terabytes_that_is_nothing_takes_no_time(small) -> None:  # type: ignore[no-untyped-def]
    (piece,) = small.pieces(1 << 32, 1 << 44)
    assert (piece.status, piece.size) == (Status.NO_RAM, 1 << 44)


@pytest.mark.parametrize("name", ["qemu10.0-multifd", "qemu7.2-multifd", "qemu10.0-multifd-zlib"])
def test_multifd_channels_are_part_of_memory(name: str) -> None:
    folder = STREAMS / "kinds"
    channels = [folder / f"{name}.channel{number}.zst" for number in (0, 1)]
    with svm.open(folder / f"{name}.mig.zst", channels=channels) as dump:
        ram, memory = dump.ram, dump.memory
        (main,) = [one for one in memory.layout.ranges if one.use is Use.RAM]
        for page in range(0, main.size // PAGE, 3):
            assert memory.read(page * PAGE, PAGE) == ram.read_page(main.block, page)
