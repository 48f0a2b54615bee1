"""Restores in a box with svmtrace looking on: stream, model and processor agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qemu_svm.cli import cli
from qemu_svm.errors import LabError
from qemu_svm.findings.witness import FieldVerdict
from qemu_svm.lab import witness
from qemu_svm.lab.witness import Follower, WitnessBox, qemu_for, witness_restore
from qemu_svm.machine import read_machine
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import STREAMS, Run
from tests.vmruns.written import Writer, vmcb

CAPTURE = STREAMS / "qemu7.2-linux6.1-nested-npt.mig.zst"
pytestmark = pytest.mark.xdist_group("witness")


@pytest.fixture(scope="module")
def bench() -> Iterator[WitnessBox]:
    with WitnessBox("6.1") as made:
        yield made


@pytest.fixture
def command(bench: WitnessBox, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the verb with the shared box."""

    @contextmanager
    def shared(*_args: Any, **_options: Any) -> Iterator[WitnessBox]:
        yield bench

    monkeypatch.setattr(witness, "WitnessBox", shared)

    def run(*args: str | Path) -> Result:
        arguments = ["lab", "witness", "--seconds", "60", *map(str, args)]
        return CliRunner().invoke(cli, arguments, standalone_mode=False)

    return run


def test_l2_gets_its_registers_and_l1_its_own(command: Any, tmp_path: Path, svmstream: Run) -> None:
    log = tmp_path / "box.log"
    done = command(CAPTURE, "--json", "--log", log)
    assert done.exit_code == 0, done.output
    assert done.return_value == 0, done.output
    found = json.loads(done.output)
    assert (found["clean"], found["wrong"], found["predicted"]) == (True, False, True)
    parts = {part["name"]: {one["name"]: one for one in part["fields"]} for part in found["parts"]}
    facts = {"vmcb02": ("0x104000", "0x10c000"), "vmcb01": ("0x101000", "0x10b000")}
    for name, (cr3, rsp) in facts.items():
        for field, value in (("cr3", cr3), ("rsp", rsp)):
            one = parts[name][field]
            assert (one["given"], one["stream"], one["model"]) == (value,) * 3
            assert one["verdict"] == "right"
    assert all(one["verdict"] != "wrong" for one in parts["control"].values())
    shown = json.loads(svmstream("vmruns", log, "--json").stdout)
    assert shown["log"]["api"] == 4
    assert any(run["role"] == "vmcb01" for run in shown["runs"])


def test_the_other_guest_in_words(command: Any) -> None:
    done = command(STREAMS / "qemu7.2-linux6.1-nested.mig.zst")
    assert done.return_value == 0, done.output
    assert "each level was given its own registers, as the model predicted" in done.output
    assert "explained: KVM adds the host's MCE" in done.output


def test_a_second_restore_is_judged_by_its_own_part_of_the_log(bench: WitnessBox) -> None:
    with open_source(str(CAPTURE)) as source:
        machine = read_machine(read_stream(source))
        found = [witness_restore(bench, machine, seconds=60) for _ in range(2)]
    numbers = [one.parts[0].number for one in found]
    assert numbers[0] < numbers[1]
    found = found[1]
    assert found.clean
    assert {one.verdict for part in found.parts for one in part.fields} == {
        FieldVerdict.RIGHT,
        FieldVerdict.EXPLAINED,
    }


def test_l1s_registers_put_before_the_nested_state_are_seen_in_l2(command: Any) -> None:
    """Accepted by every ioctl, and silently wrong: L2 runs on L1's page tables."""
    plan = "cpuid,sregs:l1,nested,regs,msrs,run"
    done = command(CAPTURE, "--plan", plan, "--json")
    assert done.return_value == 1, done.output
    found = json.loads(done.output)
    assert (found["wrong"], found["predicted"], found["missing"]) == (True, True, [])
    fields = {one["name"]: one for one in found["parts"][0]["fields"]}
    wrong = {name for name, one in fields.items() if one["verdict"] == "wrong"}
    assert wrong == {"cr3", "idtr"}
    cr3 = fields["cr3"]
    assert (cr3["given"], cr3["stream"], cr3["why"]) == ("0x101000", "0x104000", "L1's value")


def test_a_log_is_followed_while_it_grows(tmp_path: Path) -> None:
    """A record that is half there is read when it is whole."""
    whole = Writer()
    whole.run(0xA000, vmcb(), vmcb(0x400))
    whole.run(0xA000, vmcb(), vmcb(0x80), vmrun=True)
    behind = len(whole.data)
    number = whole.run(0xB000, vmcb(), vmcb(0x72))
    path = tmp_path / "log"
    path.write_bytes(whole.data[:60])
    with open_source(str(path)) as source:
        follower = Follower(source)
        for size in range(60, behind, 97):
            path.write_bytes(whole.data[:size])
            assert not follower.returned_to_l1()
        path.write_bytes(whole.data)
        assert follower.returned_to_l1()
        assert follower.last == number
        assert follower.skip() == whole.number + 1
        assert not follower.returned_to_l1()


def test_an_emulator_without_the_interface() -> None:
    with pytest.raises(LabError, match=r"QEMU 7\.2 cannot record what the processor is given"):
        WitnessBox("6.1", emulator="7.2")


@pytest.mark.parametrize(
    ("machine", "kernel", "line"),
    [
        ("pc-i440fx-7.2", "6.1", "7.2"),
        ("pc-i440fx-5.2", "6.1", "7.2"),
        ("pc-i440fx-10.0", "5.10", "10.0"),
        ("pc-q35-9.2", "6.1", "10.0"),
        ("pc-i440fx-99.0", "6.1", "7.2"),
        (None, "6.12", "10.0"),
    ],
)
def test_which_qemu(machine: str | None, kernel: str, line: str) -> None:
    assert qemu_for(machine, kernel) == line
