"""A Linux 6.1 with KVM as L1, 256 MiB split at 128 MiB, saved in its L2."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import qemu_svm as svm
from qemu_svm.memory import core
from qemu_svm.memory.memory import GuestMemory
from qemu_svm.memory.results import Status
from qemu_svm.memory.search import search
from qemu_svm.memory.spaces import Space
from qemu_svm.memory.vmcoreinfo import VmCoreInfo, find
from tests.memory.support import FOLDER

STREAM = FOLDER / "linux-l1-7.2.mig.zst"
RELEASE = b"6.1.0-50-amd64"
PAGE = 4096


@pytest.fixture(scope="module")
def dump() -> Iterator[svm.Dump]:
    with svm.open(STREAM) as one:
        yield one


@pytest.fixture(scope="module")
def memory(dump: svm.Dump) -> GuestMemory:
    return dump.memory


@pytest.fixture(scope="module")
def note(memory: GuestMemory) -> VmCoreInfo:
    virtual = memory.world("l1v")
    assert isinstance(virtual, Space)
    found = find(memory.physical, virtual)
    assert found is not None
    return found


def test_a_hole_that_was_moved_makes_no_warnings(dump: svm.Dump, memory: GuestMemory) -> None:
    low, high = 128 << 20, 1 << 32
    found = [(one.start, one.end) for one in memory.layout.ranges if one.use == "ram"]
    assert found == [(0, low), (high, high + low)]
    assert dump.vcpus[0].nested is not None
    assert dump.vcpus[0].nested.vmcb_pa > high
    assert not {"X-06", "X-07"} & {one.rule for one in dump.problems}


def test_the_kernel_is_found_by_its_note(memory: GuestMemory, note: VmCoreInfo) -> None:
    assert note.release.encode() == RELEASE
    symbol = note.symbol("init_uts_ns")
    assert symbol is not None
    # struct uts_namespace begins with struct new_utsname: six names of 65 bytes.
    names = memory.world("l1v").read(symbol, 6 * 65)
    assert names[:65].rstrip(b"\0") == b"Linux"
    assert names[130:195].rstrip(b"\0") == RELEASE


def test_l1s_registers_are_those_of_its_kernel(memory: GuestMemory) -> None:
    of = memory.l1_registers(0)
    assert len(of.sources) == 2
    gs, task = of.segments["gs"], of.segments["tr"]
    assert gs is not None
    assert task is not None
    assert task.selector == 0x40
    virtual = memory.world("l1v")
    for address in (gs.base, task.base, of.get("lstar"), of.get("rip"), of.get("rsp")):
        assert virtual.walk(address).status is Status.MAPPED
    assert virtual.read(of.get("rip") - 3, 3) == b"\x0f\x01\xd8"  # VMRUN, just before
    assert virtual.read(of.get("lstar"), 3) == b"\x0f\x01\xf8"  # SWAPGS
    assert {"rbx", "r15"} <= set(of.unknown)


def test_l2_is_the_firmware_that_counts(memory: GuestMemory) -> None:
    space = memory.world("l2v")
    address = memory.l2_registers(0).next_instruction
    walk = space.walk(address)
    assert walk.status is Status.MAPPED
    assert {step.stage for step in walk.steps} == {"nested"}  # in real mode
    code = space.read(address, 8)
    assert [hit.l1_physical for hit in search(space, code)][:1]
    assert code in memory.read((walk.address or 0) & ~(PAGE - 1), PAGE)


def test_reads_are_those_of_the_pages(memory: GuestMemory) -> None:
    virtual = memory.world("l1v")
    assert isinstance(virtual, Space)
    for number, run in enumerate(virtual.runs()):
        if number % 997 == 0 and memory.physical.state(run.target or 0) is Status.MAPPED:
            assert virtual.translate(run.start) == run.target
            walk = virtual.walk(run.start)
            assert walk.address == run.target
            assert virtual.read(run.start, 64) == memory.read(run.target or 0, 64)


def test_tools_open_the_core(memory: GuestMemory, note: VmCoreInfo, tmp_path: Path) -> None:
    path = tmp_path / "core"
    plan = core.plan(memory, vmcoreinfo=note)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    core.write(plan, fd)
    os.close(fd)
    assert path.stat().st_blocks * 512 < plan.data + (1 << 20)
    done = subprocess.run(["readelf", "-lW", path], capture_output=True, text=True, check=True)
    assert "0x0000000100000000 0x8000000 0x8000000" in done.stdout.replace("0x08", "0x8")
    small = tmp_path / "small"
    try:
        done = subprocess.run(
            ["makedumpfile", "-d", "31", "-l", path, small],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    except FileNotFoundError:
        return
    assert "makedumpfile Completed" in done.stdout + done.stderr
    assert small.stat().st_size < path.stat().st_size


def test_drgn_reads_the_stream(dump: svm.Dump, note: VmCoreInfo) -> None:
    pytest.importorskip("drgn")
    program = dump.drgn("l1")
    symbol = note.symbol("init_uts_ns")
    assert symbol is not None
    assert program.read(symbol + 130, len(RELEASE)) == RELEASE
    assert program.read(0x1000, 8, True) == dump.memory.read(0x1000, 8)
