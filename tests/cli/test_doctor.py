"""``doctor`` on this host, with a real QEMU and a real VM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qemu_svm.doctor import probe
from tests.conftest import Run
from tests.qmp.vm import running


def checks(text: bytes) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["group"], one["name"]): one for one in json.loads(text)["checks"]}


def test_this_host(svmstream: Run) -> None:
    done = svmstream("doctor", "--json")
    found = checks(done.stdout)
    facts = probe.host()
    assert json.loads(done.stdout)["host"] == facts
    states = {one["state"] for one in found.values()}
    assert done.returncode == (1 if states & {"warning", "missing"} else 0)
    device = found["KVM", "/dev/kvm"]
    assert (device["state"] == "ok") == (facts["kvm"]["error"] is None)
    size = facts["kvm"]["capabilities"].get("nested_state")
    for_replay = svmstream("doctor", "--for", "replay").returncode
    assert (for_replay == 4) == (size != 4224 or not facts["cpu"]["svm"])
    assert found["QEMU", "version"]["state"] == "ok"
    assert "tcg" in found["QEMU", "accelerators"]["found"].split()
    assert found["QEMU", "multifd"]["state"] == "ok"


def test_a_running_vm(tmp_path: Path, svmstream: Run) -> None:
    with running(tmp_path) as vm:
        done = svmstream("doctor", "--qmp", vm.address, "--json", "--for", "capture")
        found = checks(done.stdout)
        assert done.returncode in (0, 1)
        assert "pc-i440fx" in found["QMP socket", "answers"]["found"]
        assert found["QMP socket", "guest"]["found"] == "running, 1 vCPUs, no KVM"
        assert found["QMP socket", "migration"]["found"] == "none under way"
    done = svmstream("doctor", "--qmp", vm.address)
    assert done.returncode == 4
    assert b"nobody listens" in done.stdout


def test_no_qemu(svmstream: Run) -> None:
    done = svmstream("doctor", "--qemu", "/bin/false")
    assert done.returncode == 4
    assert b"is no QEMU" in done.stdout
    assert svmstream("doctor", "--qemu", "no-such-program").returncode == 4
