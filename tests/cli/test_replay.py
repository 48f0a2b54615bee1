"""``replay`` and ``lab conform`` as a user has them; the box is the shared one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import qemu_svm as svm
from qemu_svm.cli import replay as verb
from qemu_svm.cli.lab import conform as conform_verb
from qemu_svm.lab import Box
from qemu_svm.lab import conform as conform_parts
from qemu_svm.lab import kvm as targets
from qemu_svm.lab.kvm import InBox
from qemu_svm.model.profiles import PROFILES
from qemu_svm.replay import replay as replays
from qemu_svm.replay.compare import Mismatch
from tests.conftest import ROOT, STREAMS, Run
from tests.support.recordings import CLOUD_HYPERVISOR, FIRECRACKER, Log, filled
from tests.support.snapshots import raw_parts

FILE = STREAMS / "qemu7.2-linux6.1-nested.mig.zst"

Command = Callable[..., Result]


@pytest.fixture
def in_box(box: Box, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a verb in this process, with ``--lab`` meaning the box that is up."""

    monkeypatch.setattr(targets, "InBox", lambda *_, **__: InBox(box))

    def run(command: Any, *arguments: str | Path) -> Result:
        done = CliRunner().invoke(command, list(map(str, arguments)), standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return done

    return run


def test_a_replay_is_shown_step_by_step(in_box: Command) -> None:
    done = in_box(verb.command, FILE, "--lab", "6.1", "--compare")
    assert done.return_value == 0
    assert "Linux 6.1." in done.stdout
    assert "compared with profile 6.1" in done.stdout
    assert " 4 nested\n" in done.stdout
    assert "nested.flags    0x101 guest_mode gif_set  was 0x100 gif_set" in done.stdout
    assert "L2 ran until L1 got control again" in done.stdout
    assert "vmcb12 in memory has exit code 0x72 CPUID" in done.stdout
    assert "model and kernel agree in 13 steps" in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 140


def test_json_and_errnos(in_box: Command) -> None:
    plan = "cpuid,sregs,nested:@0x58/4=0,nested,regs,run"
    done = in_box(verb.command, FILE, "--lab", "6.1", "--compare", "--json", "--plan", plan)
    made = json.loads(done.stdout)
    assert done.return_value == 0
    assert [step["errno"] for step in made["steps"]] == [None, None, "EINVAL", None, None, None]
    assert made["model"]["steps"][2]["failed_check"] == "C-02"
    assert made["model"]["profile"] == "6.1"
    assert made["steps"][3]["state"]["l1.cr3"] == "0x101000"
    assert made["steps"][3]["state"]["sregs.cr3"] == "0x104000"
    assert made["steps"][3]["state"]["l1.cs"]["selector"] == "0x8"
    assert made["steps"][5]["run"]["result"] == "exit"
    assert made["steps"][5]["run"]["exit_code_name"] == "CPUID"
    assert made["steps"][5]["state"]["sregs.cr3"] == "0x101000"
    assert made["comparison"]["equal"] is True
    assert made["end"] == "done"


def test_inside_is_shown_and_compared(in_box: Command) -> None:
    plan = ("--plan", "cpuid,sregs,nested,regs,run", "--shorten", "--compare", "--inside")
    done = in_box(verb.command, FILE, "--lab", "6.1", *plan)
    assert done.return_value == 0
    assert "inside: vmcb02 is current, nested.save is empty" in done.stdout
    assert "current                vmcb02  was vmcb01" in done.stdout
    assert "vmcb01.save.cr3        0x101000  was 0x0" in done.stdout
    assert "model and kernel agree in 5 steps" in done.stdout
    assert "0xffff8" not in done.stdout
    made = json.loads(in_box(verb.command, FILE, "--lab", "6.1", "--json", *plan).stdout)
    assert made["start"]["inside"]["current"] == "vmcb01"
    assert made["steps"][2]["inside"]["nested.save.cr3"] == "0x0"
    assert made["steps"][2]["inside"]["vmcb01.save.cr3"] == "0x101000"
    assert made["steps"][4]["inside"]["vmcb02.save.cr3"] == "0x104000"
    assert made["comparison"]["equal"] is True


def test_without_compare_a_refusal_is_a_finding(in_box: Command) -> None:
    done = in_box(verb.command, FILE, "--lab", "6.1", "--plan", "cpuid,nested")
    assert done.return_value == 1
    assert " 2 nested  EINVAL" in done.stdout
    assert "model" not in done.stdout.partition("\n")[2]  # the first line names the file
    assert in_box(verb.command, FILE, "--lab", "6.1", "--plan", "cpuid,sregs").return_value == 0


def test_a_difference_is_marked(in_box: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is a 6.1, the model that of a 5.10."""
    monkeypatch.setattr(replays, "profile_of", lambda _probe: PROFILES["5.10"])
    done = in_box(verb.command, FILE, "--lab", "6.1", "--compare", "--plan", "cpuid,sregs")
    assert done.return_value == 1
    assert "DIFFERS regs.rdx: kernel 0x600, model 0x0" in done.stdout
    assert "model and kernel differ in 1 places" in done.stdout


def test_conform_reports_and_records(in_box: Command, tmp_path: Path) -> None:
    record = tmp_path / "recorded.jsonl"
    options = ("--sequences", "10", "--inside", "--record", record)
    done = in_box(conform_verb.command, FILE, *options)
    assert done.return_value == 0
    assert "kernel memory compared" in done.stdout
    assert "against profile 6.1: 10 sequences of seed 1" in done.stdout
    assert "model and kernel disagree on 0 of 10 sequences" in done.stdout
    assert len(record.read_text().splitlines()) == 10


def test_workers_of_a_cluster_conform_as_one_process_does(
    in_box: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's box is the one that is up; each of two sequences is a part of its own."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(conform_parts, "BATCH", 1)
    options = (FILE.relative_to(ROOT), "--sequences", "2", "--first", "5", "--json")
    monkeypatch.chdir(ROOT)
    alone = in_box(conform_verb.command, *options, "--record", tmp_path / "alone")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as workers:
        words = ("--record", tmp_path / "together", "--scheduler", workers.scheduler_address)
        together = in_box(conform_verb.command, *options, *words)
    made = [json.loads(done.stdout) for done in (alone, together)]
    assert made[0]["sequences"] == 2
    for one in made:
        one.pop("repeated")  # how often a busy machine was not waited for long enough
    assert made[0] == made[1]
    assert (tmp_path / "together").read_bytes() == (tmp_path / "alone").read_bytes()


def test_a_disagreement_is_shrunk_to_one_command(
    in_box: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that takes every KVM_SET_REGS for a mistake."""
    right = replays.compare

    def wrong(simulation: Any, replayed: Any, *, shortened: bool) -> Any:
        found = right(simulation, replayed, shortened=shortened)
        steps = [one for one in simulation.results if one.step.name == "regs"]
        if not steps:
            return found
        mismatch = Mismatch("errno", "EINVAL", None)
        return type(found)((type(found.steps[0])(steps[0].number, (mismatch,)),))

    monkeypatch.setattr(replays, "compare", wrong)
    done = in_box(conform_verb.command, FILE, "--sequences", "1", "--seed", "4", "--json")
    made = json.loads(done.stdout)
    assert done.return_value == 1
    (one,) = made["disagreements"]
    assert "regs" in one["plan"].split(",") or "regs:" in one["plan"]
    assert one["shrunk"] == "regs"
    words = shlex.split(one["command"])
    assert words[:5] == ["svmstream", "replay", str(FILE), "--plan", "regs"]
    assert words[5:9] == ["--lab", "6.1", "--compare", "--shorten"]


def test_there_is_no_kvm(command: Run) -> None:
    done = command("replay", FILE, "--kvm", "/nowhere/kvm")
    assert (done.returncode, done.stdout) == (4, b"")
    assert b"/nowhere/kvm: No such file or directory" in done.stderr
    assert b"--lab 6.1" in done.stderr


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "cpuid,vmrun"], b"'vmrun' cannot be replayed: it is an instruction of L1"),
        (["--plan", "cpuid,egg"], b"unknown step 'egg'"),
        (["--plan", "sregs:egg=1"], b"'sregs' has no register 'egg'"),
        (["--plan", "msrs:egg=1"], b"'msrs' has no MSR 'egg'"),
        (["--vcpu", "7"], b"the stream has no readable vCPU 7"),
        (["--kvm", "/dev/kvm", "--lab", "6.1"], b"give one"),
        (["--lab", "none"], b"Invalid value for '--lab'"),
    ],
)
def test_usage_errors_start_nothing(arguments: list[str], message: bytes, command: Run) -> None:
    done = command("replay", FILE, *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert message in done.stderr


def test_recorded_puts_on_a_real_kvm(in_box: Command, tmp_path: Path) -> None:
    # The same values in two orders: all ioctls are accepted, and only one restores L2.
    with svm.open(FILE) as dump:
        parts = filled(raw_parts(dump))
    orders = {"ch": CLOUD_HYPERVISOR, "firecracker": FIRECRACKER}
    answers = {}
    for name, order in orders.items():
        log = Log()
        log.create()
        log.put(parts, order)
        path = log.write(tmp_path / name)
        done = in_box(
            verb.command, path, "--saved", FILE, "--lab", "6.1", "--compare", "--json",
            "--timeout", "1",
        )  # fmt: skip
        made = json.loads(done.stdout)
        assert [step["errno"] for step in made["steps"]] == [None] * (len(order) + 1)
        assert made["comparison"]["equal"]
        assert made["recorded_difference"] is None
        assert made["recorded"] == {
            "vm": 1, "put": 1, "puts": 1, "ran": True,
            "carried": [], "ran_at": None, "not_known": [],
        }  # fmt: skip
        assert made["lost"] is (name == "firecracker")
        assert done.return_value == int(made["lost"])
        answers[name] = made["steps"][-1]
    assert answers["ch"]["run"]["result"] == "exit"
    assert answers["ch"]["run"]["exit_code_name"] == "CPUID"
    assert answers["firecracker"]["run"]["result"] == "hang"
    state = answers["firecracker"]["state"]
    assert int(state["nested.flags"], 16) & 1 == 0  # no guest mode: L2's code as L1
    rip = int(state["regs.rip"], 16)
    with svm.open(FILE) as dump:
        assert rip >> 12 == dump.vcpus[0].registers.rip >> 12
