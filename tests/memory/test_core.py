"""ELF cores: loads as in QEMU's own dump, notes, and what readers of cores make of them."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.errors import EnvironmentFault, PathError
from qemu_svm.memory import core, notes
from qemu_svm.memory.memory import GuestMemory
from qemu_svm.memory.paging import mode
from qemu_svm.memory.spaces import Space
from qemu_svm.memory.vmcoreinfo import VmCoreInfo, candidates, find, proved
from tests.conftest import STREAMS
from tests.memory.support import BARE, TRUTHS, loads, made, opened, tables, truth_of

PAGE = 4096
NPT = STREAMS / "guests" / "qemu10.0-linux6.12-nested-npt.mig.zst"


def written(memory: GuestMemory, path: Path, *args: Any, **options: Any) -> core.Plan:
    plan = core.plan(memory, *args, **options)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        core.write(plan, fd)
    finally:
        os.close(fd)
    return plan


def programs(data: bytes) -> list[Any]:
    head = notes.HEADER.parse(data)
    number = head.phnum
    if number == notes.PN_XNUM:
        number = notes.SECTION.parse(data[head.shoff :]).info
    return [
        notes.PROGRAM.parse(data[head.phoff + at * notes.PROGRAM_SIZE :]) for at in range(number)
    ]


def notes_of(data: bytes) -> list[tuple[bytes, int, bytes]]:
    (one,) = [found for found in programs(data) if found.type == notes.PT_NOTE]
    found, at = [], one.offset
    while at < one.offset + one.filesz:
        head = notes.NOTE.parse(data[at:])
        name = data[at + 12 :][: head.namesz]
        start = at + 12 + -(-head.namesz // 4) * 4
        found.append((name, head.type, data[start:][: head.descsz]))
        at = start + -(-head.descsz // 4) * 4
    return found


LARGE = ("3600", "3g", "pc-nvdimms", "dimms-by-number", "dimms-on-the-wire")
"""More than 1 GiB: their loads are compared where no file is written, with the layout."""


@pytest.mark.parametrize(
    "name", [name for name in TRUTHS if not any(large in name for large in LARGE)]
)
def test_loads_are_those_of_qemus_dump(name: str, tmp_path: Path) -> None:
    with truth_of(name) as (memory, truth):
        written(memory, tmp_path / "core", search=False)
        data = (tmp_path / "core").read_bytes()
        found = [
            (one.paddr, one.memsz,
             hashlib.sha256(data[one.offset :][: one.filesz]).hexdigest())
            for one in programs(data) if one.type == notes.PT_LOAD
        ]  # fmt: skip
        assert found == loads(truth)


@pytest.mark.parametrize("name", BARE)
def test_notes_are_those_of_qemus_dump(name: str, tmp_path: Path) -> None:
    with truth_of(name) as (memory, truth):
        if not memory.vcpu(0).get("efer") & 1 << 10:
            pytest.skip("QEMU writes 32-bit notes for a 32-bit guest")
        written(memory, tmp_path / "core", search=False)
        (one, _, ours), (two, _, state) = notes_of((tmp_path / "core").read_bytes())
        assert (one, two) == (b"CORE\0", b"QEMU\0")
        theirs = bytes.fromhex(truth["notes"])
        status = notes.PRSTATUS.parse(theirs[theirs.index(b"CORE\0") + 8 :])
        assert notes.PRSTATUS.parse(ours).registers == status.registers
        expected = notes.CPU_STATE.parse(theirs[theirs.index(b"QEMU\0") + 8 :])
        found = notes.CPU_STATE.parse(state)
        assert (found.version, found.size) == (expected.version, expected.size)
        assert found.general == expected.general
        assert list(found.cr) == list(expected.cr)
        for segment in ("cs", "ds", "es", "fs", "gs", "ss", "ldt", "tr", "gdt", "idt"):
            assert found.segments[segment].base == expected.segments[segment].base
            assert found.segments[segment].selector == expected.segments[segment].selector


def test_sizes_are_those_of_the_source() -> None:
    assert notes.PRSTATUS.sizeof() == 336
    assert notes.CPU_STATE.sizeof() == 440
    assert notes.HEADER.sizeof() == notes.HEADER_SIZE
    assert notes.PROGRAM.sizeof() == notes.PROGRAM_SIZE
    assert notes.SECTION.sizeof() == notes.SECTION_SIZE


def test_a_core_of_l1_has_l1s_registers(tmp_path: Path) -> None:
    with opened(NPT) as memory:
        plan = written(memory, tmp_path / "core", search=False)
        status = notes.PRSTATUS.parse(notes_of((tmp_path / "core").read_bytes())[0][2])
        save = memory.machine.vcpus[0].nested.l1_save  # type: ignore[union-attr]
        assert (status.registers.rip, status.registers.rsp) == (save.rip, save.rsp)
        assert status.registers.rip != memory.machine.vcpus[0].get("rip")
        assert any(words.startswith("registers, written as 0") for words in plan.missing)


def test_a_core_of_l2_is_what_l1_has_mapped(tmp_path: Path) -> None:
    with opened(NPT) as memory:
        assert core.levels(memory)[0] == "l1"
        plan = written(memory, tmp_path / "core", core.levels(memory)[1], search=False)
        assert plan.level.startswith("l2@0x")
        data = (tmp_path / "core").read_bytes()
        (load,) = [one for one in programs(data) if one.type == notes.PT_LOAD]
        assert (load.paddr, load.memsz) == (0, 0x200000)
        assert data[load.offset :][: load.filesz] == memory.read(0x400000, 0x200000)
        status = notes.PRSTATUS.parse(notes_of(data)[0][2])
        assert status.registers.rip == memory.machine.vcpus[0].get("rip")
        assert (tmp_path / "core").stat().st_blocks * 512 < 1 << 20  # the rest is a hole


def test_the_form_for_gdb_has_virtual_addresses(tmp_path: Path) -> None:
    with truth_of("pc-long-mode-7.2") as (memory, _):
        plan = written(memory, tmp_path / "core", "l1", "gdb", search=False)
        data = (tmp_path / "core").read_bytes()
        space = memory.world("l1v")
        found = [one for one in programs(data) if one.type == notes.PT_LOAD]
        assert len(found) == len(plan.virtual)
        for one in found:
            assert data[one.offset :][:64] == space.read(one.vaddr, 64)
            assert space.translate(one.vaddr) == one.paddr  # type: ignore[union-attr]


def test_gdb_reads_the_code_at_rip(tmp_path: Path) -> None:
    with truth_of("pc-long-mode-7.2") as (memory, _):
        written(memory, tmp_path / "core", "l1", "gdb", search=False)
        rip = memory.vcpu(0).get("rip")
        expected = memory.world("l1v").read(rip, 8)
    command = ["gdb", "-nx", "-batch", "-ex", "set architecture i386:x86-64",
               "-ex", f"x/8xb {rip:#x}", "-ex", "p/x $rip", "-c", tmp_path / "core"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        pytest.skip("gdb is not installed")
    assert "\t".join(f"{byte:#04x}" for byte in expected) in done.stdout
    assert f"{rip:#x}" in done.stdout


def test_readelf_finds_nothing_wrong(tmp_path: Path) -> None:
    with opened(NPT) as memory:
        for form in core.FORMS:
            path = tmp_path / form
            written(memory, path, "l1", form, search=False)
            done = subprocess.run(
                ["readelf", "-hlW", path], capture_output=True, text=True, check=True
            )
            assert "CORE (Core file)" in done.stdout
            assert not done.stderr


def test_very_many_loads_are_counted_in_a_section_header() -> None:
    number = 70_000
    head = notes.HEADER.parse(notes.header(number))
    assert head.phnum == notes.PN_XNUM
    assert head.shoff == 64 + number * 56
    assert notes.SECTION.parse(notes.extra_section(number)).info == number
    assert notes.extra_section(100) == b""
    assert notes.HEADER.parse(notes.header(100)).phnum == 100


def test_levels_that_nobody_runs() -> None:
    with truth_of("pc-long-mode-7.2") as (memory, _):
        for level in ("l2", "l2@0x1000"):
            with pytest.raises(PathError, match="no vCPU was running L2"):
                core.plan(memory, level)
        with pytest.raises(PathError, match="unknown form"):
            core.plan(memory, "l1", "windbg")
    with opened(NPT) as memory:
        for level in ("l2@0x1", "l2@x", "l3", "l2@"):
            with pytest.raises(PathError, match="no vCPU was running"):
                core.plan(memory, level)


def test_a_full_disk_is_seen_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(NPT) as memory:
        plan = core.plan(memory, search=False)
        fd = os.open(tmp_path / "core", os.O_RDWR | os.O_CREAT, 0o600)
        disk = os.fstatvfs(fd)
        small = os.statvfs_result((*tuple(disk)[:4], 16, *tuple(disk)[5:10]))
        monkeypatch.setattr(os, "fstatvfs", lambda _fd: small)
        with pytest.raises(EnvironmentFault, match="not enough room"):
            core.write(plan, fd)
        assert os.fstat(fd).st_size == 0
        os.close(fd)


def test_pages_that_are_missing_are_said() -> None:
    memory = made({0: b"\1" * PAGE, 5 * PAGE: b"\2" * PAGE}, 8 * PAGE)
    plan = core.plan(memory, search=False)
    assert plan.counts == {"data": 2, "zero": 0, "never": 6}
    assert "6 pages that were never sent, written as zeros" in plan.missing


TEXT = b"OSRELEASE=6.1.0\nSYMBOL(init_uts_ns)=ffffffff82000000\nNUMBER(phys_base)=%d\n"


def with_notes(*bases: int) -> tuple[GuestMemory, Space]:
    """Notes at 16 pages and on, and tables that map the symbol to physical 0x100000."""
    top, symbol = PAGE, 0xFFFFFFFF82000000
    entries = {
        top + 8 * 511: 2 * PAGE | 3, 2 * PAGE + 8 * 510: 3 * PAGE | 3,
        3 * PAGE + 8 * (symbol >> 21 & 511): 4 * PAGE | 3, 4 * PAGE: 0x100000 | 3,
    }  # fmt: skip
    pages = tables(entries)
    for number, base in enumerate(bases):
        text = TEXT % base
        head = (11).to_bytes(4, "little") + len(text).to_bytes(4, "little") + bytes(4)
        page = head + b"VMCOREINFO\0\0" + text
        pages[(16 + number) * PAGE] = page.ljust(PAGE, b"\0")
    memory = made(pages)
    return memory, Space(memory.physical, mode(1 << 31, top, 1 << 5, 1 << 10), world="l1v")


def test_the_note_that_the_page_tables_prove_is_taken() -> None:
    right = 0x100000 - 0x2000000  # negative, as with a kernel below where it was linked
    memory, virtual = with_notes(0, right, 4096)
    every = list(candidates(memory.physical))
    assert [note.address for note in every] == [16 * PAGE, 17 * PAGE, 18 * PAGE]
    assert [proved(note, virtual) for note in every] == [False, True, False]
    found = find(memory.physical, virtual)
    assert found is not None
    assert (found.address, found.phys_base, found.release) == (17 * PAGE, right, "6.1.0")
    assert find(with_notes(0)[0].physical, virtual) is None


def test_the_note_is_in_the_core(tmp_path: Path) -> None:
    memory, _ = with_notes(0)
    note = VmCoreInfo(0, b"OSRELEASE=1\n")
    written(memory, tmp_path / "core", vmcoreinfo=note)
    assert notes_of((tmp_path / "core").read_bytes())[-1] == (b"VMCOREINFO\0", 0, note.text)
