"""QEMU restores a stream in the box, recorded by eBPF: it puts what the stream says."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import qemu_svm as svm
from qemu_svm.errors import OutputExists
from qemu_svm.lab import Box
from qemu_svm.lab.recording import recorded as recorded_in
from qemu_svm.lab.restore import copy_to_share, settings_of
from qemu_svm.lab.results import restore_in
from qemu_svm.lab.vm import running
from qemu_svm.machine import Machine, read_machine
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import STREAMS
from tests.recorder.oracle import differences, recorded

CAPTURE = str(STREAMS / "qemu7.2-linux6.1-nested.mig.zst")


def proved(machine: Machine, path: Path) -> None:
    assert differences(machine, path) == []
    records = recorded(path)
    assert [one["runs"] for one in records if one.get("kind") == "end"] != []
    assert not [one for one in records if one.get("kind") == "lost"]
    assert sum("kind" not in one for one in records) > 250
    assert path.stat().st_mode & 0o777 == 0o600


def test_on_6_1(box: Box, tmp_path: Path) -> None:
    path = tmp_path / "vmm.jsonl"
    with open_source(CAPTURE) as source:
        machine = read_machine(read_stream(source))
        assert restore_in(box, machine, record=str(path)).outcome.good
        proved(machine, path)
        with pytest.raises(OutputExists):
            restore_in(box, machine, record=str(path))
    assert list(box.share.glob("record-*")) == []


def test_on_6_12(box_6_12: Box, tmp_path: Path) -> None:
    path = tmp_path / "vmm.jsonl"
    with open_source(CAPTURE) as source:
        machine = read_machine(read_stream(source))
        name = copy_to_share(box_6_12, source)
        with recorded_in(box_6_12, str(path)) as prefix:
            with_ram = (*prefix[:2], "--ram", *prefix[2:])
            with running(box_6_12, settings_of(machine), prefix=with_ram) as vm:
                vm.load(name)
                (file,) = box_6_12.share.glob("record-*.jsonl")
                until = time.monotonic() + 60
                while file.read_text().count('"memory"') < 4 and time.monotonic() < until:
                    time.sleep(0.2)
        proved(machine, path)
    memory = {
        int(one["address"], 16): bytes.fromhex(one["data"])
        for one in recorded(path)
        if one.get("kind") == "memory"
    }
    # It is read when L2 begins to run; in it are the counters of the guest.
    with svm.open(CAPTURE) as dump:
        told = {start: dump.memory.read(start, len(data)) for start, data in memory.items()
                if start < 0xA0000 or 1 << 20 <= start < 32 << 20}  # fmt: skip
    assert len(told) >= 2
    for start, data in told.items():
        differs = [at for at in range(len(data)) if data[at] != memory[start][at]]
        assert len(differs) < 64, hex(start)
