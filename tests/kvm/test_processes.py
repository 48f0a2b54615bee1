"""The vCPUs of a process, on kernel memory and a /proc made up for it."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.kvm import inside, processes
from qemu_svm.kvm.inside import Gone, KernelMemory, symbol
from qemu_svm.kvm.processes import Process, answer, kvm_processes, refusal, vcpu_files
from tests.inside.images import MAP, Memory, close, kallsyms, process

ID = 0x04


def proc(folder: Path, pid: int, **links: str) -> Path:
    """A /proc with one process; its files by descriptor."""
    place = folder / "proc" / str(pid)
    (place / "fd").mkdir(parents=True)
    for name, target in links.items():
        (place / "fd" / name.removeprefix("fd")).symlink_to(target)
    (place / "comm").write_text("vmm\n")
    return folder / "proc"


def vcpu(memory: Memory, identity: int, owner: int) -> int:
    place = memory.take(0x100)
    memory.put(place + ID, identity, 4)
    memory.put(place + 0x60, owner)
    return place


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """This process has two VMs: vCPUs 0 and 1 of one, 0 of the other, one open twice."""
    made = Memory(tmp_path / "kcore")
    first, second = made.take(8), made.take(8)
    one, two, other = vcpu(made, 0, first), vcpu(made, 1, first), vcpu(made, 0, second)
    pid = os.getpid()
    init = process(made, pid, {5: one, 6: two, 7: other, 8: one})
    names = str(kallsyms(tmp_path / "kallsyms", init))
    monkeypatch.setattr(inside, "symbol", lambda name: symbol(name, names))
    root = str(proc(tmp_path, pid, fd5="anon_inode:kvm-vcpu:0", fd6="anon_inode:kvm-vcpu:1",
                    fd7="anon_inode:kvm-vcpu:0", fd8="anon_inode:kvm-vcpu:0",
                    fd9="anon_inode:kvm-vm", fd3="/dev/kvm"))  # fmt: skip
    monkeypatch.setattr(processes, "vcpu_files", lambda pid: vcpu_files(pid, root))
    made.save()
    return made


def test_the_vcpus_of_a_process_are_found_by_their_files(tmp_path: Path) -> None:
    root = str(proc(tmp_path, 7, fd12="anon_inode:kvm-vcpu:3", fd3="anon_inode:kvm-vcpu:0",
                    fd4="anon_inode:kvm-vm", fd5="/tmp/kvm-vcpu:9"))  # fmt: skip
    proc(tmp_path, 8, fd3="/dev/null")
    assert vcpu_files(7, root) == [(3, 0), (12, 3)]
    assert kvm_processes(root) == [{"pid": 7, "name": "vmm", "vcpus": 2}]
    with pytest.raises(Gone, match="process 9 does not exist"):
        vcpu_files(9, root)


def test_each_vcpu_is_read_once_and_its_vm_counted(memory: Memory) -> None:
    with KernelMemory(str(memory.path)) as kernel, Process(kernel, MAP, os.getpid()) as one:
        found = one.look()
        assert [(each["id"], each["vm"], each["fd"]) for each in found] == [
            (0, 0, 5), (1, 0, 6), (0, 1, 7),
        ]  # fmt: skip
        again = one.look()
        assert [each["parts"] for each in again] == [{}, {}, {}]
        assert len(json.dumps(again)) < 300  # on the wire


def test_a_vcpu_that_is_closed_while_it_is_read_is_told(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = inside.Watcher.look

    def closed(watcher: inside.Watcher) -> dict[str, Any]:
        close(memory, 6)  # vCPU 1
        memory.save()
        return right(watcher)

    with KernelMemory(str(memory.path)) as kernel, Process(kernel, MAP, os.getpid()) as one:
        one.look()
        monkeypatch.setattr(inside.Watcher, "look", closed)
        found = one.look()
        assert [each.get("gone") for each in found] == [
            None, "the vCPU was closed while it was read", None,
        ]  # fmt: skip


def test_a_process_that_has_ended(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
    init = process(memory, child, {5: vcpu(memory, 0, memory.take(8))})
    names = str(kallsyms(memory.path.with_name("others"), init))
    monkeypatch.setattr(inside, "symbol", lambda name: symbol(name, names))
    monkeypatch.setattr(processes, "vcpu_files", lambda _pid: [(5, 0)])
    memory.save()
    with KernelMemory(str(memory.path)) as kernel, Process(kernel, MAP, child) as one:
        assert one.look()[0]["points"] == {"current": None, "mmu": None}
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        with pytest.raises(Gone, match="has ended"):
            one.look()
    os.waitpid(child, 0)
    with KernelMemory(str(memory.path)) as kernel, pytest.raises(Gone, match="does not exist"):
        Process(kernel, MAP, child)


def test_a_process_without_a_vcpu(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "vcpu_files", lambda _pid: [])
    with KernelMemory(str(memory.path)) as kernel, pytest.raises(Gone, match="does not use KVM"):
        Process(kernel, MAP, os.getpid())


def test_each_line_is_answered_with_a_look(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "KernelMemory", lambda: KernelMemory(str(memory.path)))
    given = io.BytesIO(json.dumps(MAP).encode() + b"\n\n\n")
    first, second = (json.loads(line) for line in answer(os.getpid(), given))
    assert [each["id"] for each in first["vcpus"]] == [0, 1, 0]
    assert not any(each["parts"] for each in second["vcpus"])


def host(folder: Path, *modules: str, vendor: str = "AuthenticAMD") -> str:
    for name in modules:
        (folder / "sys/module" / name).mkdir(parents=True)
    (folder / "proc/self/ns").mkdir(parents=True)
    (folder / "proc/self/ns/pid").symlink_to("pid:[4026531836]")
    (folder / "proc/cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    return f"{folder}/"


@pytest.mark.parametrize(
    ("modules", "vendor", "words"),
    [
        (("kvm_intel",), "GenuineIntel", "kvm_intel is, whose vCPUs have a VMCS"),
        ((), "GenuineIntel", "the processor's vendor is GenuineIntel"),
    ],
)
def test_a_host_without_kvm_amd(
    modules: tuple[str, ...], vendor: str, words: str, tmp_path: Path
) -> None:
    fault = refusal(host(tmp_path, *modules, vendor=vendor))
    assert fault is not None
    assert "kvm_amd is not loaded" in fault.what
    assert words in fault.what


def test_what_forbids_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = host(tmp_path, "kvm_amd")
    monkeypatch.setattr(processes, "lockdown", lambda: "none")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert refusal(root) is None
    monkeypatch.setattr(processes, "lockdown", lambda: "confidentiality")
    assert "lockdown" in str(refusal(root))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "not root" in str(refusal(root))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(processes, "lockdown", lambda: "integrity")
    (tmp_path / "proc/self/ns/pid").unlink()
    (tmp_path / "proc/self/ns/pid").symlink_to("pid:[4026532000]")
    assert "PID namespace" in str(refusal(root))
