"""Facts about the host that the tests run on, and about the host in a box."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qemu_svm.doctor import probe
from qemu_svm.kvm.numbers import by_name
from qemu_svm.lab import Box


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("GET_API_VERSION", probe.GET_API_VERSION),
        ("CHECK_EXTENSION", probe.CHECK_EXTENSION),
    ],
)
def test_numbers_are_those_of_the_table(name: str, number: int) -> None:
    known = by_name(name)
    assert known is not None
    assert known.number == number


def test_alone_and_without_anything_installed(tmp_path: Path) -> None:
    # As it would be carried to another host: one file, no package, no site-packages.
    copy = tmp_path / "probe.py"
    copy.write_bytes(Path(probe.__file__).read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", copy], capture_output=True, check=True, timeout=30
    )
    assert json.loads(done.stdout) == probe.host()


def test_in_a_box(box: Box) -> None:
    (box.share / "probe.py").write_bytes(Path(probe.__file__).read_bytes())
    done = box.run(["python3", "-I", "-S", "/share/probe.py"], timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kernel"]["release"].startswith("6.1.")
    assert found["cpu"]["svm"]
    assert found["kvm"]["capabilities"]["nested_state"] == 4224
    assert found["modules"]["kvm_amd"]["nested"] == "1"
    assert found["inside"]["kcore"] == ""
    assert {"vmlinux", "kvm_amd"} <= set(found["inside"]["types"])
    assert found["inside"]["pid_namespace"] == "pid:[4026531836]"


def test_cpu_of_a_host_with_svm() -> None:
    text = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu svm npt vgif hypervisor\n\n"
    found = probe.cpu(text + text.replace(": 0", ": 1"))
    assert found["count"] == 2
    assert found["svm"]
    assert found["svm_features"] == ["npt", "vgif"]


def test_a_device_that_is_none(tmp_path: Path) -> None:
    plain = tmp_path / "kvm"
    assert probe.kvm(str(plain))["error"] == "ENOENT"
    plain.write_bytes(b"")
    found = probe.kvm(str(plain))
    assert found["exists"]
    assert found["error"] == "ENOTTY"
    assert found["api"] == 0
