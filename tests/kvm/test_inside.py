"""The reader of kernel memory, on memory made up for it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.errors import EnvironmentFault
from qemu_svm.kvm import inside
from qemu_svm.kvm.inside import Gone, KernelMemory, Tasks, Watcher, symbol
from tests.inside.images import BASE, MAP, Memory, kallsyms, open_descriptors, process

VCPU_ID = 3


@pytest.fixture
def memory(tmp_path: Path) -> Memory:
    return Memory(tmp_path / "kcore")


@pytest.fixture
def vcpu(memory: Memory) -> int:
    """A vCPU with vmcb01, which is current."""
    place, page = memory.take(0x100), memory.take(0x1000)
    memory.put(place + 4, VCPU_ID, 4)
    memory.put(place + 8, 0x1111)
    memory.put(place + 0x20, page)
    memory.put(place + 0x30, page)
    memory.put(place + 0x38, place + 0x50)
    memory.put(page + 0x40, 0xDEAD_BEEF)
    memory.put(page + 0x550, 0x101000)
    memory.put(page + 0x558, 0xDEAD_F00D)
    return place


def test_a_vcpu_is_found_by_its_file(memory: Memory, vcpu: int, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    init = process(memory, 700, {5: vcpu})
    path = str(kallsyms(tmp_path / "kallsyms", init))
    monkeypatch.setattr(inside, "symbol", lambda name: symbol(name, path))
    with KernelMemory(str(memory.save())) as kernel:
        tasks = Tasks(kernel, MAP)
        assert tasks.private(700, 5) == vcpu
        for pid, fd, words in ((701, 5, "list of tasks"), (700, 6, "closed"), (700, 99, "no file")):
            with pytest.raises(Gone, match=words):
                tasks.private(pid, fd)


def look(memory: Memory, place: int, layout: dict[str, Any] = MAP) -> dict[str, Any]:
    with KernelMemory(str(memory.save())) as kernel:
        return Watcher(kernel, layout, place, VCPU_ID).look()


def test_a_look_names_what_pointers_point_to_and_has_no_address(memory: Memory, vcpu: int) -> None:
    seen = look(memory, vcpu)
    assert seen["points"] == {"current": "vmcb01", "mmu": "guest_mmu"}
    assert seen["parts"]["svm"] == [[0, "1111000000000000"]]
    assert seen["parts"]["vmcb01"] == [[0x550, "0010100000000000"]]
    assert seen["parts"]["vmcb02"] is None
    assert "changing" not in seen
    shown = look(memory, vcpu, MAP | {"addresses": True})
    assert shown["addresses"]["vcpu"] == vcpu
    assert [0x40, "efbeadde00000000"] in shown["parts"]["vmcb01"]
    memory.put(vcpu + 0x190, 1)  # with nested paging it is no address of the host
    assert dict(look(memory, vcpu)["parts"]["vmcb01"])[0x550].endswith("0df0adde00000000")


def test_only_what_changed_is_sent(memory: Memory, vcpu: int) -> None:
    with KernelMemory(str(memory.save())) as kernel:
        watcher = Watcher(kernel, MAP, vcpu, VCPU_ID)
        watcher.look()
        assert watcher.look() == {"parts": {}, "points": {}}
        memory.put(vcpu + 0x40, 0x22)
        memory.save()
        assert watcher.look() == {"parts": {"svm": [[0x10, "2200000000000000"]]}, "points": {}}


def test_memory_that_changes_while_it_is_read_is_told(
    memory: Memory, vcpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KernelMemory(str(memory.save())) as kernel:
        watcher = Watcher(kernel, MAP, vcpu, VCPU_ID)
        read, count = kernel.read, iter(range(1000))

        def restless(address: int, size: int) -> bytes:
            data = read(address, size)
            return bytes([next(count) & 0xFF]) + data[1:] if size == 0x40 else data

        monkeypatch.setattr(kernel, "read", restless)
        assert watcher.look()["changing"] is True


def test_another_structure_is_not_taken_for_a_vcpu(memory: Memory, vcpu: int) -> None:
    memory.put(vcpu + 4, 7, 4)
    with pytest.raises(Gone, match="no vCPU 3"):
        look(memory, vcpu)


def test_memory_that_is_gone(memory: Memory, vcpu: int) -> None:
    memory.put(vcpu + 0x28, BASE - 0x1000)
    with pytest.raises(Gone, match="no such address"):
        look(memory, vcpu)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "not a 64-bit ELF"), (b"\x7fELF\x01" + bytes(59), "not a 64-bit"),
     (b"\x7fELF\x02" + bytes(59), "0 segments")],
)  # fmt: skip
def test_a_file_that_is_no_kcore(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "kcore"
    path.write_bytes(content)
    before = open_descriptors()
    with pytest.raises(EnvironmentFault, match=words):
        KernelMemory(str(path))
    assert open_descriptors() == before


def test_what_forbids_it_is_said_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvironmentFault, match="No such file") as caught:
        KernelMemory(str(tmp_path / "missing"))
    assert caught.value.hint is not None
    assert "CONFIG_PROC_KCORE" in caught.value.hint
    (tmp_path / "lockdown").write_text("none integrity [confidentiality]\n")
    monkeypatch.setattr(inside, "LOCKDOWN", str(tmp_path / "lockdown"))
    with pytest.raises(EnvironmentFault) as caught:
        KernelMemory(str(tmp_path / "missing"))
    assert caught.value.hint is not None
    assert "lockdown" in caught.value.hint
    hidden = kallsyms(tmp_path / "kallsyms", 0)
    with pytest.raises(EnvironmentFault, match="hides addresses"):
        symbol("init_task", str(hidden))
    with pytest.raises(EnvironmentFault, match="does not list no_task"):
        symbol("no_task", str(hidden))


def test_a_symbol_may_be_at_the_end_of_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(kallsyms(tmp_path / "kallsyms", 0xFFFF_FFFF_8260_0000))
    for size in (1, 7, 40):
        monkeypatch.setattr(inside, "_CHUNK", size)
        assert symbol("init_task", path) == 0xFFFF_FFFF_8260_0000
    assert os.path.exists(path)
