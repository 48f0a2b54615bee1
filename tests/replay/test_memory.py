"""RAM out of a capture, and the places that a replay changes."""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest

from qemu_svm.errors import Truncated
from qemu_svm.machine import read_machine
from qemu_svm.model import plans
from qemu_svm.replay.conform import Guest
from qemu_svm.replay.memory import STOP, extract_ram, handlers, patches, with_idt
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import STREAMS
from tests.replay.conftest import PAGED, PLAIN, guest

STOPS = 3 * STOP[:2] + STOP
CPUID_AND_STOPS = b"\x0f\xa2" + STOPS
VMRUN = b"\x0f\x01\xd8"


@pytest.mark.parametrize("name", ["plain", "paged"])
def test_l1s_next_instruction_becomes_the_stop(name: str, request: pytest.FixtureRequest) -> None:
    one: Guest = request.getfixturevalue(name)
    changed = dict(patches(one.ram.read, one.saved, plans.parse("qemu"), shorten=False))
    place = one.saved.l1().get("rip")  # L1's tables map its program to itself
    assert changed == {place: STOP}
    assert one.ram.read(place - 3, 3) == VMRUN


@pytest.mark.parametrize("name", ["plain", "paged"])
def test_shortened_l2_leaves_at_once(name: str, request: pytest.FixtureRequest) -> None:
    one: Guest = request.getfixturevalue(name)
    changed = dict(patches(one.ram.read, one.saved, plans.parse("qemu"), shorten=True))
    assert changed[one.saved.regs["rip"]] == CPUID_AND_STOPS
    assert changed[one.saved.l1().get("rip")] == STOPS
    assert changed[0xFFF0] == changed[0xFFFF_FFF0] == STOPS


def test_every_l1_that_a_plan_makes_is_stopped(plain: Guest) -> None:
    steps = plans.parse("cpuid,sregs,nested:@0x578=0x100300,nested:@0x550=0x0,nested,run")
    places = [address for address, _ in patches(plain.ram.read, plain.saved, steps, shorten=False)]
    assert places == [0x100300, plain.saved.l1().get("rip")]  # CR3 0 maps nothing


def test_l2_in_other_modes(tmp_path: Path) -> None:
    for name, short in (("pae", "pae"), ("pae-npt", "pae-npt"), ("protected", "protected")):
        path = f"guests/qemu10.0-linux6.12-{name}.mig.zst"
        with guest(path, tmp_path) as one:
            changed = patches(one.ram.read, one.saved, plans.parse("qemu"), shorten=True)
            assert [data for _, data in changed][:2] == [STOPS, CPUID_AND_STOPS], short


@pytest.mark.parametrize(
    ("name", "gate"),
    [(PLAIN, 16), (PAGED, 16), ("guests/qemu10.0-linux6.12-protected.mig.zst", 8)],
)
def test_a_shortened_l2_has_an_idt(tmp_path: Path, name: str, gate: int) -> None:
    with guest(name, tmp_path) as one:
        saved = with_idt(one.ram.read, one.saved)
        table = saved.sregs.segment("idtr")
        assert (table.base, table.limit) == (0x1000, 32 * gate - 1)
        changed = dict(patches(one.ram.read, saved, plans.parse("qemu"), shorten=True))
        entry = changed[0x1000][13 * gate : 14 * gate]
        offset, selector, _, kind, high = struct.unpack_from("<HHBBH", entry)
        assert (offset | high << 16, selector, kind) == (
            0x1200,
            saved.sregs.segment("cs").selector,
            0x8E,
        )
        assert changed[0x1200] == STOPS
        assert 0x1202 in handlers(saved.sregs)
        assert 0x1200 not in handlers(one.saved.sregs)
        assert not set(
            dict(patches(one.ram.read, one.saved, plans.parse("qemu"), shorten=True))
        ) & {0x1000}


def test_there_is_memory_at_the_reset_vector_if_it_is_wanted(tmp_path: Path) -> None:
    with open_source(str(STREAMS / PLAIN)) as source:
        machine = read_machine(read_stream(source))
        ram = extract_ram(machine, str(tmp_path / "ram"), reset_page=True)
    try:
        assert ram.read(0xFFFF_FFF0, 16) == bytes(16)
        assert ram.read(0xFFFF_E000, 16) == b""
    finally:
        os.close(ram.fd)


def test_the_file_has_what_the_stream_has(plain: Guest) -> None:
    extents = plain.ram.extents(0, 32 << 20)
    assert 0 < sum(size for _, size in extents) < 8 << 20
    data = b"".join(plain.ram.read(start, size) for start, size in extents)
    assert VMRUN in data
    assert plain.ram.backed(0, 32 << 20)
    assert not plain.ram.backed(0x1000, 32 << 20)
    assert plain.ram.read(32 << 20, 8) == b""
    assert len(plain.ram.read((32 << 20) - 4, 8)) == 4


def test_ram_that_went_over_other_channels(tmp_path: Path) -> None:
    """Without them nothing is written: the guest would run in memory full of zeros."""
    kinds = STREAMS / "kinds"
    with ExitStack() as stack:
        source, *channels = (
            stack.enter_context(open_source(str(kinds / f"qemu10.0-multifd.{name}.zst")))
            for name in ("mig", "channel1", "channel0")
        )
        machine = read_machine(read_stream(source))
        with pytest.raises(Truncated, match="sent over multifd channels"):
            extract_ram(machine, str(tmp_path / "none"))
        assert not (tmp_path / "none").exists()
        ram = extract_ram(machine, str(tmp_path / "ram"), channels)
    try:
        assert ram.ranges == ((0, 16 << 20, 0),)
        assert ram.read(0x7DFE, 2) == b"\x55\xaa"  # the boot sector
    finally:
        os.close(ram.fd)
