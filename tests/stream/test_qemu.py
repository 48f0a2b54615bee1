"""Streams that a real QEMU writes now, and QEMU's own script as the oracle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.source import open_source
from qemu_svm.stream import Walk, read_stream
from tests.conftest import CAPTURES, STREAMS, capture_bytes
from tests.support.oracle import differences

pytestmark = pytest.mark.qemu

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qemu-svm"
SCRIPT = CACHE / "analyze-migration.py"

MACHINES = {
    "pc": ["-M", "pc", "-m", "32"],
    "pc-smp": ["-M", "pc", "-m", "32", "-smp", "4", "-cpu", "EPYC,+svm"],
    "q35-virtio": [
        *["-M", "q35", "-m", "64", "-device", "virtio-rng-pci", "-device", "virtio-balloon-pci"],
        *["-device", "virtio-serial-pci", "-device", "virtio-net-pci", "-device", "qemu-xhci"],
        *["-device", "usb-tablet", "-device", "pcie-root-port,id=r,chassis=1"],
    ],
    "isapc": ["-M", "isapc", "-m", "16"],
    "microvm": ["-M", "microvm", "-m", "32"],
    "no-footers": ["-M", "pc-i440fx-2.3", "-m", "16"],
    "old": ["-M", "pc-q35-4.2", "-m", "16", "-nodefaults"],
    "max": ["-M", "pc", "-m", "16", "-cpu", "max"],
}  # fmt: skip


def save(arguments: list[str], path: Path) -> None:
    """Start a real QEMU without a guest and save it."""
    monitor = f"migrate exec:cat>{path}\nquit\n"
    subprocess.run(
        ["qemu-system-x86_64", "-accel", "tcg", "-S", "-display", "none", "-net", "none"]
        + ["-monitor", "stdio", *arguments],
        input=monitor.encode(), capture_output=True, timeout=120, check=True,
    )  # fmt: skip


def script(path: Path) -> dict[str, Any]:
    """What the script prints of a stream."""
    done = subprocess.run(
        [sys.executable, SCRIPT, "-d", "state", "-f", path], capture_output=True, check=True
    )
    document: dict[str, Any] = json.loads(done.stdout)
    return document


needs_script = pytest.mark.skipif(
    not SCRIPT.exists(), reason="QEMU's analyze-migration.py is not in the cache"
)


@pytest.mark.parametrize("name", MACHINES)
def test_fresh_streams_of_a_real_qemu(name: str, tmp_path: Path) -> None:
    path = tmp_path / "dump.bin"
    save(MACHINES[name], path)
    with open_source(str(path)) as source:
        stream = read_stream(source)
        linear = read_stream(source, walk=Walk.LINEAR)
        assert stream.complete
        assert stream.problems == ()
        assert stream.records[-1].end == source.size()
        assert list(stream.sections()) == list(linear.sections())
        for record in stream.sections():
            value = stream.values(record)
            assert value is not None
            assert value.size == record.payload_size
        cpus = [record for record in stream.sections() if record.name == "cpu"]
        assert len(cpus) == (4 if name == "pc-smp" else 1)
        if SCRIPT.exists() and name != "isapc":  # the script mixes up its two isa-ide
            assert differences(stream, script(path)) == []


@needs_script
@pytest.mark.parametrize("entry", CAPTURES, ids=lambda entry: entry["file"])
def test_values_are_those_of_the_script(entry: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "dump.bin"
    path.write_bytes(capture_bytes(entry["file"]))
    with open_source(str(STREAMS / entry["file"])) as source:
        assert differences(read_stream(source), script(path)) == []
