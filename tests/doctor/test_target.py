"""Running VMs, asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qemu_svm.doctor import target
from qemu_svm.doctor.judge_qemu import judge_target
from qemu_svm.doctor.model import Check, CheckState
from qemu_svm.lab import Box
from qemu_svm.qmp import Client, sync
from tests.qmp.vm import Vm, running

pytestmark = pytest.mark.qemu


def ask(vm: Vm) -> tuple[target.Target, dict[str, Check]]:
    found = asyncio.run(target.ask(vm.address))
    return found, {one.name: one for one in judge_target(found)}


def test_a_running_one(tmp_path: Path) -> None:
    with running(tmp_path, memory=32) as vm:
        found, told = ask(vm)
        assert found.ram == 32 << 20
        assert found.vcpus == 1
        assert found.kvm is False
        assert told["guest"].found == "running, 1 vCPUs, no KVM"
        assert "pc-i440fx" in told["QEMU"].found
        assert told["migration"].state is CheckState.OK
        with sync.connect(vm.address) as qmp:
            before = qmp.capabilities()
        assert found.capabilities == before
        # A migration that somebody else began.
        with sync.connect(vm.address) as qmp:
            qmp.execute("migrate-set-parameters", {"max-bandwidth": 4096})
            qmp.execute("migrate", {"uri": "exec:cat >/dev/null"})
        _, told = ask(vm)
        assert told["migration"].state is CheckState.WARNING
        assert "in progress" in told["migration"].found


@pytest.mark.parametrize(("cpu", "offered"), [("qemu64,+svm", True), ("qemu64,-svm", False)])
def test_svm(cpu: str, offered: bool, tmp_path: Path) -> None:
    with running(tmp_path, "-cpu", cpu, "-S") as vm:
        found, told = ask(vm)
        assert found.svm is offered
        assert told["svm"].state is (CheckState.OK if offered else CheckState.NOTE)
        assert told["guest"].found.startswith("prelaunch")


def test_one_that_cannot_be_captured(tmp_path: Path) -> None:
    # QEMU's writable view of a folder as a FAT disk blocks migration.
    (tmp_path / "folder").mkdir()
    disk = f"if=virtio,format=raw,file=fat:rw:{tmp_path}/folder"
    with running(tmp_path, "-drive", disk, "-S") as vm:
        _, told = ask(vm)
        assert told["migration"].state is CheckState.MISSING
        assert told["migration"].needed_for == {"capture"}
        assert "vvfat" in told["migration"].found
    with running(tmp_path, "-incoming", "defer") as vm:
        _, told = ask(vm)
        assert told["guest"].found.startswith("inmigrate")
        assert "waiting for a stream" in told["migration"].found


def test_one_that_nests_for_real(box: Box) -> None:
    socket = "/tmp/guest.qmp"
    process = box.start(
        ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host,+svm", "-m", "16", "-S"]
        + ["-nodefaults", "-display", "none", "-qmp", f"unix:{socket},server=on,wait=off"]
    )
    try:
        forwarded = box.forward(socket)

        async def wait() -> None:
            client = Client(f"unix:{forwarded}")
            await client.reopen(60)
            await client.close()

        asyncio.run(wait())
        found = asyncio.run(target.ask(f"unix:{forwarded}"))
    finally:
        process.kill()
    assert found.kvm
    assert found.svm
    told = {one.name: one for one in judge_target(found)}
    assert told["svm"].state is CheckState.OK
    assert told["guest"].found == "prelaunch, 1 vCPUs, KVM"
