"""Facts about the host that the tests run on, with nothing but the standard library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from qemu_svm.doctor import probe
from qemu_svm.kvm.numbers import by_name


def test_numbers_are_those_of_the_table() -> None:
    version, extension = by_name("GET_API_VERSION"), by_name("CHECK_EXTENSION")
    assert version is not None
    assert extension is not None
    assert version.number == probe.GET_API_VERSION
    assert extension.number == probe.CHECK_EXTENSION


def test_alone_and_without_anything_installed(tmp_path: Path) -> None:
    # As it would be carried to another host: one file, no package, no site-packages.
    copy = tmp_path / "probe.py"
    copy.write_bytes(Path(probe.__file__).read_bytes())
    done = subprocess.run(
        [sys.executable, "-I", "-S", copy], capture_output=True, check=True, timeout=30
    )
    assert json.loads(done.stdout)["cpu"]["count"] == probe.host()["cpu"]["count"] > 0


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
    assert found["api"] is None
