"""What the installed QEMU tells of its devices."""

from __future__ import annotations

import subprocess

import pytest

from qemu_svm.stream.vmstate.dump import Dump, parse_dump

QEMU = "qemu-system-x86_64"  # 7.2


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("dump") / "vmstate.json"
    subprocess.run([QEMU, "-M", "pc-q35-7.2", "-dump-vmstate", path], check=True)
    return path.read_bytes()


@pytest.fixture(scope="session")
def dump(text: bytes) -> Dump:
    return parse_dump(text)
