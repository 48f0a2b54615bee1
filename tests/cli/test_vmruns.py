"""``vmruns`` on real logs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.nested import layout
from tests.conftest import STREAMS, Run
from tests.vmruns.recorded import LOGS, NAMES

ONE = str(STREAMS / LOGS[0]["file"])


def document(svmstream: Run, *args: str) -> Any:
    done = svmstream("vmruns", "--json", *args)
    assert done.stderr == b""
    assert done.returncode == 0
    return json.loads(done.stdout)


@pytest.mark.parametrize("entry", LOGS, ids=NAMES)
def test_facts(entry: dict[str, Any], command: Run) -> None:
    found = document(command, str(STREAMS / entry["file"]))
    facts = entry["facts"]
    assert (found["log"]["api"], found["log"]["vcpus"]) == (facts["api"], facts["cpus"])
    assert Counter(vmcb["role"] for vmcb in found["vmcbs"]) == facts["vmcbs"]
    assert {vmcb["certainty"] for vmcb in found["vmcbs"]} == {"proved"}
    runs = found["runs"]
    assert len(runs) == facts["entries"]
    assert sum(run["vmrun"] is not None for run in runs) == facts["l1_vmruns"]
    assert {run["certainty"] for run in runs} == {"proved"}
    l1 = next(run for run in runs if run["role"] == "vmcb01")
    for wanted, run in ((facts["first"], runs[0]), (facts["first_l1"], l1)):
        assert {name: run["entry"][name] for name in wanted} == wanted
    # What L1 executes VMRUN in is L1, and what L1 intercepts (CPUID) stops L2.
    for run in runs:
        if run["exit"] is not None:
            assert (run["exit"]["name"] == "VMRUN") <= (run["role"] == "vmcb01")
            assert (run["exit"]["name"] == "CPUID") <= (run["role"] == "vmcb02")


def test_a_document_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from qemu_svm.render.json import vmruns as vmruns_document
    from qemu_svm.source import open_source
    from qemu_svm.vmruns.log import read_log
    from qemu_svm.vmruns.results import RunsReport
    from qemu_svm.vmruns.select import Selection

    with open_source(ONE) as source:
        log = read_log(source)
        whole = RunsReport(log, Selection()).to_json()
        monkeypatch.setattr(vmruns_document, "MAX_RUNS", 5)
        cut = RunsReport(log, Selection()).to_json()
    assert (whole["runs_complete"], cut["runs_complete"]) == (True, False)
    assert cut["runs"] == whole["runs"][:5]


def test_pairs_of_two_guests(command: Run) -> None:
    found = document(command, str(STREAMS / LOGS[2]["file"]))
    pairs = Counter((vmcb["vcpu"], vmcb["role"]) for vmcb in found["vmcbs"])
    assert pairs == {(n, role): 1 for n in (0, 1) for role in ("vmcb01", "vmcb02")}


def test_text(command: Run) -> None:
    done = command("vmruns", ONE, env={"COLUMNS": "80", "PATH": "/usr/bin"})
    text = done.stdout.decode()
    assert done.returncode == 0
    assert "1 CPU through plugin interface 7" in text
    assert "vmcb02 of vCPU 0  proved  122      INTR 116, CPUID 4, NPF 2" in text
    assert "L1's VMRUN, vmcb12 at 0x108000" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_filters(command: Run) -> None:
    whole = document(command, ONE)["runs"]
    exits = document(command, ONE, "--exit", "vmrun")["runs"]
    assert exits == [run for run in whole if run["exit"] and run["exit"]["code"] == "0x80"]
    assert document(command, ONE, "--exit", "0x80")["runs"] == exits
    l1 = document(command, ONE, "--level", "l1", "--first", "70", "--last", "600")["runs"]
    assert [run["number"] for run in l1] == [
        run["number"] for run in whole if run["role"] == "vmcb01" and 70 <= run["number"] <= 600
    ]
    assert l1
    assert document(command, ONE, "--vcpu", "1")["runs"] == []


def test_changes_between_entries(command: Run) -> None:
    done = command("vmruns", "-v", "--to", "27", ONE)
    text = done.stdout.decode()
    assert "control.exit_code" in text
    assert "save.rip" in text
    runs = document(command, ONE)["runs"]
    changed = {change["field"] for run in runs for change in run["changed"] or ()}
    assert {"save.rip", "control.asid", "control.intercepts"} <= changed


def test_show_has_every_byte(command: Run) -> None:
    first = document(command, ONE)["runs"][0]
    shown = document(command, ONE, "--show", str(first["number"]))
    assert shown["kind"] == "VMRUN"
    assert shown["fields"]["save.cr3"] == first["entry"]["cr3"]
    text = command("vmruns", ONE, "--show", str(first["number"]), "-v").stdout.decode()
    for name in ("control.intercepts", "save.cs.base", "save.reserved_298", "[LME LMA SVME]"):
        assert name in text
    members = len(layout.CONTROL.members) + len(layout.SAVE.members)
    assert len(text.splitlines()) > members


def test_wrong_arguments(command: Run, tmp_path: Path, sample_file: Path) -> None:
    assert command("vmruns", ONE, "--exit", "nonsense").returncode == 2
    done = command("vmruns", ONE, "--show", "1")
    assert done.returncode == 2
    assert b"no record 1 with a VMCB" in done.stderr
    assert command("vmruns", sample_file).returncode == 3
    assert command("vmruns", tmp_path / "none").returncode == 3


def test_a_cut_log_is_shown_as_far_as_it_goes(command: Run, tmp_path: Path) -> None:
    from tests.conftest import capture_bytes

    data = capture_bytes(LOGS[0]["file"])
    cut = tmp_path / "cut.log"
    cut.write_bytes(data[:30000])
    done = command("vmruns", "--json", cut)
    assert done.returncode == 3
    assert b"offset 0x7530" in done.stderr
    found = json.loads(done.stdout)
    assert found["log"]["problem"]["offset"] == 30000
    assert found["log"]["end"] is None
    assert len(found["runs"]) > 10
