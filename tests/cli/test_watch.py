"""``watch`` beside a real QEMU that migrates slowly."""

from __future__ import annotations

import json
from pathlib import Path

from qemu_svm.qmp import sync
from tests.conftest import Run
from tests.qmp.vm import Vm, running

SINK = {"uri": "exec:cat >/dev/null"}


def migrate(vm: Vm, bandwidth: int, uri: str = SINK["uri"]) -> None:
    with sync.connect(vm.address) as qmp:
        qmp.execute("migrate-set-parameters", {"max-bandwidth": bandwidth})
        qmp.execute("migrate", {"uri": uri})


def test_a_migration_from_begin_to_end(tmp_path: Path, svmstream: Run) -> None:
    with running(tmp_path, memory=64) as vm:
        done = svmstream("watch", "--qmp", vm.address)
        assert done.returncode == 1
        assert b"--wait" in done.stderr
        migrate(vm, 600_000)
        done = svmstream("watch", "--qmp", vm.address, "--interval", "0.1", "--json")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(lines) > 3
        sent = [line["ram"]["transferred"] for line in lines]
        assert sent == sorted(sent)
        assert sent[-1] > sent[0]
        assert any(line["rates"]["wire"] for line in lines)
        assert [line["status"] for line in lines][-1] == "completed"
        assert lines[0]["settings"]["parameters"]["max-bandwidth"] == 600_000
        assert lines[0]["settings"]["capabilities"]["events"] is False
        # One that is over is told as it ended.
        done = svmstream("watch", "--qmp", vm.address)
        assert done.returncode == 0
        assert b"completed" in done.stdout


def test_one_that_failed(tmp_path: Path, svmstream: Run) -> None:
    with running(tmp_path) as vm:
        migrate(vm, 1 << 30, "exec:exit 3")
        done = svmstream("watch", "--qmp", vm.address, "--interval", "0.1")
        assert done.returncode == 5
        assert b"failed" in done.stdout
        assert b"write" in done.stdout or b"Broken pipe" in done.stdout


def test_nobody_there(tmp_path: Path, svmstream: Run) -> None:
    done = svmstream("watch", "--qmp", f"unix:{tmp_path}/none")
    assert done.returncode == 4
    assert b"no such socket" in done.stderr
