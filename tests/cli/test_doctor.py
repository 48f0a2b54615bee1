"""``doctor`` as a command: what was asked for decides the exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.doctor import probe
from qemu_svm.render.text.doctor import render
from tests.conftest import ROOT, Run
from tests.qmp.vm import running

HOSTS = ROOT / "tests" / "doctor" / "hosts"


def checks(text: bytes) -> dict[str, dict[str, Any]]:
    return {f"{one['group']} {one['name']}": one for one in json.loads(text)["checks"]}


@pytest.mark.qemu
def test_this_host(command: Run) -> None:
    done = command("doctor", "--json")
    found = checks(done.stdout)
    assert json.loads(done.stdout)["host"] == probe.host()
    states = {one["state"] for one in found.values()}
    assert done.returncode == (1 if states & {"warning", "missing"} else 0)
    assert found["QEMU version"]["state"] == "ok"
    missing = {
        purpose for one in found.values() if one["state"] == "missing"
        for purpose in one["needed_for"]
    }  # fmt: skip
    done = command("doctor", "--for", "replay", "--for", "restore")
    assert (done.returncode == 4) == bool(missing & {"replay", "restore"})


@pytest.mark.qemu
def test_a_running_vm(tmp_path: Path, command: Run) -> None:
    with running(tmp_path) as vm:
        done = command("doctor", "--qmp", vm.address, "--for", "capture")
        assert done.returncode in (0, 1), done.stdout
        assert b"running, 1 vCPUs, no KVM" in done.stdout
    done = command("doctor", "--qmp", vm.address)
    assert done.returncode == 4
    assert b"nobody listens" in done.stdout


def test_no_qemu(command: Run) -> None:
    done = command("doctor", "--qemu", "no-such-program")
    assert done.returncode == 4
    assert b"no such program" in done.stdout


def test_another_host(command: Run, tmp_path: Path) -> None:
    done = command("doctor", "--host", HOSTS / "linux7.2.json", "--for", "replay")
    assert done.returncode == 0
    assert b"SVM, 4224 bytes" in done.stdout
    assert b"QEMU\n" not in done.stdout
    assert command("doctor", "--host", HOSTS / "linux5.10.json").returncode == 1
    facts = json.loads((HOSTS / "linux7.2.json").read_text())
    facts["kernel"]["release"] = "7.2\x1b[31m"
    hostile = tmp_path / "host.json"
    hostile.write_text(json.dumps(facts))
    assert b"\x1b" not in command("doctor", "--host", hostile).stdout
    hostile.write_text("{}")
    assert command("doctor", "--host", hostile).returncode == 3
    assert command("doctor", "--host", hostile, "--qmp", "x").returncode == 2


def test_the_probe_is_carried_through_pipes(command: Run) -> None:
    program = command("doctor", "--probe").stdout
    said = subprocess.run(
        [sys.executable, "-I", "-S", "-"], input=program, capture_output=True, check=True
    ).stdout
    here = command("doctor", "--host", "-", "--json", input=said)
    assert here.returncode in (0, 1)
    assert json.loads(here.stdout)["host"] == probe.host()


def test_a_report_fits_the_terminal() -> None:
    from qemu_svm.doctor import facts
    from qemu_svm.doctor.judge_host import judge_host
    from qemu_svm.doctor.model import Diagnosis

    checks = list(judge_host(facts.read(facts.load(str(HOSTS / "linux5.10.json")))))
    lines = [line.plain for line in render(Diagnosis(checks, {}), width=80)]
    assert max(map(len, lines)) <= 80
    words = " ".join(" ".join(lines).split())
    for one in checks:
        assert one.found in words
        assert one.do in words
