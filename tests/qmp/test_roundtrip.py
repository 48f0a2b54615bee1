"""Through a second QEMU and back: nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

import qemu_svm as svm
from qemu_svm.qmp import sync
from tests.conftest import Run
from tests.qmp.test_capture import settings
from tests.qmp.test_restore import PROGRAM, alive, arguments
from tests.qmp.vm import Vm, running

MORE = {
    "pc": (),
    "smp": ("-smp", "3", "-cpu", "max"),
    "q35": (
        *("-M", "q35", "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci"),
        *("-device", "qemu-xhci", "-device", "usb-tablet"),
    ),
}


@pytest.mark.parametrize("kind", MORE)
def test_a_running_guest(kind: str, tmp_path: Path, svmstream: Run) -> None:
    with running(tmp_path, *MORE[kind]) as vm:
        before = settings(vm)
        done = svmstream("roundtrip", "--qmp", vm.socket, "--json", *arguments(vm))
        assert settings(vm) == before
    assert (done.returncode, done.stderr) == (0, b"")
    made = json.loads(done.stdout)
    assert made["same"] is True
    assert {"stopped-copy"} <= {mask["id"] for mask in made["masks"]}
    assert made["ram"]
    assert alive(vm) == []


def test_a_file_and_what_is_kept(vm: Vm, tmp_path: Path, svmstream: Run) -> None:
    with sync.connect(vm.address) as qmp:
        qmp.capture(str(tmp_path / "dump.bin"))
    keep = tmp_path / "kept"
    done = svmstream("roundtrip", tmp_path / "dump.bin", "--keep", keep, *arguments(vm))
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"no differences" in done.stdout
    assert b"stopped-copy" in done.stdout
    assert os.listdir(keep) == ["second.bin"]
    done = svmstream("roundtrip", tmp_path / "dump.bin", "--keep", keep, *arguments(vm))
    assert done.returncode == 2
    assert b"exists already" in done.stderr


def test_into_one_that_waits(vm: Vm, tmp_path: Path, svmstream: Run) -> None:
    before = settings(vm)
    for number, options in enumerate(((), ("--qemu-dir", str(tmp_path / "1")))):
        with running(tmp_path, "-incoming", "defer", name="to") as to:
            keep = ("--keep", tmp_path / str(number))
            done = svmstream("roundtrip", "--qmp", vm.socket, "--into", to.socket, *keep, *options)
            assert (done.returncode, done.stderr) == (0, b"")
            with sync.connect(to.address) as qmp:
                assert not qmp.status().running
    assert settings(vm) == before


def test_what_is_lost_is_found(vm: Vm, tmp_path: Path, svmstream: Run) -> None:
    with sync.connect(vm.address) as qmp:
        qmp.capture(str(tmp_path / "dump.bin"))
    # Bit 10 of DR7 is always one: TCG sets it again when it loads the vCPU.
    with svm.open(tmp_path / "dump.bin") as dump:
        at = dump["vcpu0.dr7"].offset
    raw = bytearray((tmp_path / "dump.bin").read_bytes())
    raw[at : at + 8] = bytes(8)
    (tmp_path / "odd").write_bytes(raw)
    done = svmstream("roundtrip", tmp_path / "odd", "--json", *arguments(vm))
    assert (done.returncode, done.stderr) == (1, b"")
    made = json.loads(done.stdout)
    found = [one["path"] for one in made["differences"] if one["mask"] is None]
    assert found == ["vcpu0.registers.dr7"]
    done = svmstream("roundtrip", tmp_path / "odd", "--mask", "vcpu*.dr7", *arguments(vm))
    assert done.returncode == 0


def test_refusals_and_wrong_words(vm: Vm, tmp_path: Path, svmstream: Run) -> None:
    before = settings(vm)
    done = svmstream("roundtrip", "--qmp", vm.socket, *arguments(vm, "-M", "q35"))
    assert done.returncode == 5
    assert b"QEMU says" in done.stdout
    assert settings(vm) == before
    assert svmstream("roundtrip").returncode == 2
    assert svmstream("roundtrip", "--qmp", vm.socket).returncode == 2
    assert svmstream("roundtrip", "x", "--qmp", vm.socket, "--to", "/none").returncode == 2
    done = svmstream("roundtrip", "--qmp", vm.socket, "--to", "/none")
    assert done.returncode == 4


def test_interrupted(vm: Vm) -> None:
    before = settings(vm)
    process = subprocess.Popen(
        [PROGRAM, "roundtrip", "--qmp", vm.socket, *arguments(vm)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not alive(vm):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, alive(vm)) == (130, [])
    assert b"the second QEMU was ended" in said
    assert settings(vm) == before
