"""QEMU programs, asked on this host and with KVM in a box."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from qemu_svm.doctor import qemu
from qemu_svm.doctor.judge_qemu import judge_binary
from qemu_svm.doctor.model import CheckState
from qemu_svm.errors import QmpError
from qemu_svm.lab import Box
from qemu_svm.qmp import Client

pytestmark = pytest.mark.qemu


def test_the_one_here() -> None:
    found = asyncio.run(qemu.ask("qemu-system-x86_64"))
    assert found.abilities.capabilities["multifd"] == ""
    assert found.abilities.capabilities["postcopy-preempt"]  # needs postcopy-ram
    assert "zlib" in found.abilities.compressions
    told = {one.name: one for one in judge_binary(found)}
    assert told["version"].state is CheckState.OK
    assert "multifd" in told["migration"].found
    assert ("mapped-ram" in told) == (found.abilities.version.major < 9)


def ours() -> tuple[set[str], int]:
    """Our children, and how many files we have open."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return set(children), len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = ours()
    asyncio.run(qemu.ask("qemu-system-x86_64"))
    assert ours() == before
    for delay in (0.001, 0.03, 0.06, 0.1):
        with contextlib.suppress(TimeoutError):
            asyncio.run(asyncio.wait_for(qemu.ask("qemu-system-x86_64"), delay))
        assert ours() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo broken >&2; exit 1", "broken"),
        ("exit 0", "no message"),
    ],
)
def test_programs_that_are_no_qemu(script: str, words: str, tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(QmpError, match="no such program"):
        asyncio.run(qemu.ask(str(program)))
    program.chmod(0o755)
    with pytest.raises(QmpError, match=words):
        asyncio.run(qemu.ask(str(program)))


def test_without_kvm(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *"-accel kvm"*) echo no KVM here >&2; exit 1;; esac\n'
        'exec qemu-system-x86_64 "$@"\n'
    )
    program.chmod(0o755)
    found = asyncio.run(qemu.ask(str(program)))
    assert found.no_kvm == "no KVM here"
    assert found.abilities.host_cpu == {}
    (kvm,) = [one for one in judge_binary(found) if one.name == "KVM"]
    assert kvm.state is CheckState.WARNING
    assert "no KVM here" in kvm.found


def test_with_nested_kvm_in_a_box(box: Box) -> None:
    # The program is asked the same way there: started without a machine, with KVM.
    command = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-S"]
    socket = "/tmp/doctor.qmp"
    process = box.start([*command, "-accel", "kvm", "-qmp", f"unix:{socket},server=on,wait=off"])
    try:
        forwarded = box.forward(socket)

        async def ask() -> qemu.Abilities:
            client = Client(f"unix:{forwarded}")
            await client.reopen(60)
            try:
                return await qemu.abilities(client)
            finally:
                await client.close()

        found = asyncio.run(ask())
    finally:
        process.kill()
    assert found.kvm
    assert found.host_cpu["svm"]
    assert found.host_cpu["npt"]
    told = {one.name: one for one in judge_binary(qemu.Binary("qemu", "", found))}
    assert told["-cpu host"].found.startswith("offers svm npt")
