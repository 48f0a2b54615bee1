"""``check`` and ``simulate`` as a user has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import qemu_svm as svm
from qemu_svm.findings.rules import RULES
from qemu_svm.findings.verdict import Verdict
from tests.conftest import CAPTURES, STREAMS, Run

FILE = STREAMS / "qemu7.2-linux6.1-nested.mig.zst"


@pytest.mark.parametrize("entry", CAPTURES, ids=lambda entry: entry["file"])
def test_check_passes_every_capture(entry: dict[str, Any], command: Run) -> None:
    done = command("check", "--json", STREAMS / entry["file"])
    assert (done.returncode, done.stderr) == (0, b"")
    made = json.loads(done.stdout)
    (vcpu,) = made["vcpus"]
    assert all(kernel["accepted"] for kernel in vcpu["kernels"].values())
    kernel = entry["provenance"]["kernel"]
    assert vcpu["kernels"][kernel]["verdict"] == "right"


def test_check_reports_what_is_broken(sample: bytes, tmp_path: Path, command: Run) -> None:
    where = json.loads(
        command("show", "--json", "-", "vcpu0.nested.control.asid", input=sample).stdout
    )["offset"]
    path = tmp_path / "broken.bin"
    path.write_bytes(sample[:where] + bytes(4) + sample[where + 4 :])
    done = command("check", path)
    assert done.returncode == 1
    assert b"error C-02 at " + f"{where:#x}".encode() in done.stdout
    assert b"L2's ASID is 0 (control.asid 0x0)" in done.stdout
    one = command("check", "--json", "--kernel", "6.1", path)
    kernels = {found["rule"]: found["kernels"] for found in json.loads(one.stdout)["findings"]
               if found["severity"] != "info"}  # fmt: skip
    assert kernels.pop("C-02") == ["6.1"]
    assert all(rule.startswith("X-") for rule in kernels), "the state is impossible as well"


def test_fail_on(command: Run) -> None:
    file = STREAMS / "qemu7.2-linux6.1-nested-npt.mig.zst"
    assert command("check", file).returncode == 0
    old = ("--kernel", "5.10.100")
    assert command("check", "--fail-on", "warning", file, *old).returncode == 1
    assert command("check", "--fail-on", "warning", "--kernel", "6.1", file).returncode == 0
    assert command("check", "--qemu", "5.0", file).returncode == 1


def test_rules_are_listed_and_explained(command: Run) -> None:
    listed = command("check", "--rules")
    assert listed.returncode == 0
    for rule in RULES:
        assert f"  {rule} ".encode() in listed.stdout
        explained = command("check", "--explain", rule) if rule in ("SV-03", "O-04") else None
        if explained is not None:
            assert b"source" in explained.stdout
            assert b"kernels" in explained.stdout
    made = json.loads(command("check", "--rules", "--json").stdout)
    assert len(made["rules"]) == len(RULES)
    wrong = command("check", "--explain", "SV-99")
    assert wrong.returncode == 2
    assert b"SV-1" in wrong.stderr


def test_check_of_a_cut_stream(sample: bytes, command: Run) -> None:
    done = command("check", "-", input=sample[:400_000])
    assert done.returncode == 3
    assert b"NOT COMPLETE" in done.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["check"], b"Missing argument"),
        (["check", "x", "--qemu", "new"], b"neither a version"),
        (["check", str(FILE), "--kernel", "6.2x"], b"unknown kernel '6.2x'"),
        (["simulate", str(FILE), "--kernel", "6.12x"], b"near it: 6.12"),
        (["simulate", str(FILE), "--plan", "cpuid,sreg"], b"sregs"),
        (["simulate", str(FILE), "--vcpu", "3"], b"no readable vCPU 3"),
        (["simulate", str(FILE), "--race", "efer"], b"not FIELD=NUMBER"),
    ],
)
def test_wrong_arguments(args: list[str], words: bytes, command: Run) -> None:
    done = command(*args)
    assert done.returncode == 2
    assert words in done.stderr
    assert b"Traceback" not in done.stderr


def test_simulate_says_what_goes_wrong(command: Run) -> None:
    done = command("simulate", FILE, "--plan", "cpuid,sregs:l1,nested,regs,run")
    assert done.returncode == 1
    assert b"verdict: wrong" in done.stdout
    assert (
        b"L2 would run with L1's page tables: CR3 0x101000 instead of 0x104000, "
        b"written by step 2 (sregs:l1)" in done.stdout
    )


def test_simulate_on_all_kernels(command: Run) -> None:
    done = command("simulate", FILE, "--kernel", "all")
    assert done.returncode == 0
    assert b"  5.8 to 7.3  measured on 5.10.223, " in done.stdout
    assert b"  v3, review  read " in done.stdout
    assert done.stdout.count(b"  right ") == 2
    broken = command("simulate", FILE, "--kernel", "all", "--plan", "cpuid,nested")
    assert broken.returncode == 1
    rows = [line.split(b"  ")[1] for line in broken.stdout.splitlines()[2:]]
    assert rows == [b"5.8 to 6.19", b"7.0 to 7.3", b"v3, review"]
    assert broken.stdout.count(b"refused") == len(rows)


def test_simulate_json(command: Run) -> None:
    done = command("simulate", FILE, "--json", "--kernel", "v3", "--plan", "cpuid,sregs,nested")
    made = json.loads(done.stdout)
    (one,) = made["simulations"]
    assert one["kernel"]["name"] == "v3"
    assert [step["errno"] for step in one["steps"]] == [None] * 3
    cached = one["steps"][2]["state"]["areas"]["save_cache"]["cr3"]
    assert (cached["value"], cached["step"]) == ("0x101000", 3)
    nested = one["steps"][2]["state"]["nested"]
    assert nested == {"flags": "0x101", "format": 1, "size": 4224, "vmcb_pa": "0x108000"}
    code = one["steps"][2]["state"]["areas"]["vmcb02"]["cs"]["value"]
    assert code["attrib"] == "0xa9b"
    assert one["verdict"] == "open"


def test_simulate_race(command: Run) -> None:
    plan = ["--plan", "cpuid,sregs,nested,regs,msrs,run"]
    old = command("simulate", FILE, "--kernel", "5.10", "--race", "efer=0x0", *plan)
    assert b"L2 runs with efer 0x1000, which was never checked: 0x1500 was" in old.stdout
    assert old.returncode == 1
    assert b"verdict: wrong" in old.stdout
    new = command("simulate", FILE, "--kernel", "6.1", "--race", "efer=0x0", *plan)
    assert b"the race has no effect" in new.stdout
    assert new.returncode == 0


@pytest.mark.parametrize(
    ("kernel", "wrong"),
    [("5.8", True), ("5.10.27", True), ("5.11.11", True), ("5.10.28", False), ("5.11.12", False),
     ("5.12", False), ("5.13", False), ("6.1", False), ("7.2", False)],
)  # fmt: skip
def test_a_race_on_the_controls(kernel: str, wrong: bool) -> None:
    """CVE-2021-29657: up to 5.11, L2 ran without the VMRUN intercept."""
    with svm.open(FILE) as dump:
        report = dump.simulate(
            "cpuid,sregs,nested,regs,msrs,run", kernel=kernel, race={"intercepts": 0}
        )
    (judged,), (done,) = report.judgements, report.simulations
    notes = done.results[-1].notes
    assert (report.verdict is Verdict.WRONG) == wrong
    assert any("never checked" in line for line in judged.lines) == wrong
    assert any("the race has no effect" in note for note in notes) != wrong


def test_a_race_that_frees_the_nested_state_is_wrong(command: Run) -> None:
    arguments = ["--plan", "cpuid,sregs,nested,regs,msrs,run", "--race", "efer=0x0"]
    done = command("simulate", FILE, "--kernel", "5.8", *arguments)
    assert done.returncode == 1
    assert b"freed in use" in done.stdout


def test_a_race_on_a_field_that_nothing_checks_is_right(command: Run) -> None:
    arguments = ["--plan", "cpuid,sregs,nested,regs,msrs,run", "--race", "tsc_offset=5"]
    done = command("simulate", FILE, "--kernel", "5.8", *arguments)
    assert done.returncode == 0
    assert b"tsc_offset is not checked" in done.stdout


def test_race_names(command: Run) -> None:
    from qemu_svm.model.race import FIELDS

    done = command("simulate", FILE, "--race", "intercept=0")
    assert done.returncode == 2
    assert b"Did you mean intercepts" in done.stderr
    words = command("simulate", "--help").stdout.decode().split()
    assert set(FIELDS) <= {word.strip(".") for word in words}


def test_simulate_verbose_fits_and_runs(command: Run) -> None:
    done = command("simulate", FILE, "-v", "--kernel", "5.10")
    assert done.returncode == 0
    assert b"hsave" in done.stdout


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("mpstate:2", b"5 run  waits for INIT or SIPI"),
        ("events:smm_pending=1", b"5 run  enters SMM first"),
        ("events:latched_init=1", b"5 run  resets the vCPU (INIT)"),
    ],
)
def test_a_run_that_enters_neither_level(step: str, words: bytes, command: Run) -> None:
    plan = f"cpuid,sregs,nested,{step},run"
    done = command("simulate", FILE, "--kernel", "6.1", "--plan", plan)
    assert words in done.stdout
    assert b"entered" not in done.stdout.partition(b"5 run")[2].partition(b"\n")[0]
