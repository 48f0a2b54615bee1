"""Options that were renamed, and those that take a version of QEMU or a binary."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from qemu_svm.cli import cli, qemus
from qemu_svm.errors import EnvironmentFault
from tests.conftest import STREAMS, Run

FILE = str(STREAMS / "qemu7.2-linux6.1-nested.mig.zst")
NPT = str(STREAMS / "qemu10.0-linux6.12-nested-npt.mig.zst")


def run(*arguments: str) -> tuple[int, str]:
    # As main() does it, without a process of its own.
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    if isinstance(done.exception, click.ClickException):
        return done.exception.exit_code, done.exception.format_message()
    assert done.exception is None, done.exception
    return done.return_value or 0, done.output


def kernels(*arguments: str) -> dict[str, dict[str, object]]:
    _, text = run("check", NPT, "--json", *arguments)
    found: dict[str, dict[str, object]] = json.loads(text)["vcpus"][0]["kernels"]
    return found


@pytest.mark.parametrize("verb", ["check", "simulate"])
def test_npt(verb: str) -> None:
    old = run(verb, NPT, "--kernel", "6.1", "--no-npt")
    assert old == run(verb, NPT, "--kernel", "6.1", "--npt", "off")
    assert old[0] == 1
    assert "C-03" in old[1]
    assert run(verb, NPT, "--kernel", "6.1", "--npt", "on")[0] == 0


@pytest.mark.parametrize(
    ("verb", "shown", "hidden"),
    [
        ("check", "--npt", "--no-npt"),
        ("simulate", "--npt", "--no-npt"),
        ("roundtrip", "--into", "--to"),
        ("vmruns", "--first", "--from"),
        ("vmruns", "--last", "--to"),
    ],
)
def test_old_spellings_are_hidden(verb: str, shown: str, hidden: str) -> None:
    _, text = run(verb, "--help")
    assert re.search(rf"^  {shown}\b", text, re.MULTILINE)
    assert not re.search(rf"{hidden}\b", text)
    completed = ShellComplete(cli, {}, "svmstream", "_").get_completions([verb], "--")
    words = [one.value for one in completed]
    assert shown in words
    assert hidden not in words


def test_what_the_cpu_lacks() -> None:
    for name, (model, failed) in {
        "6.12.118": ("EPYC", {"R-05", "Q-04"}),
        "6.12.100": ("EPYC", {"S-11", "Q-04"}),
        "6.1": ("host,-svm", {"S-11", "Q-04"}),
    }.items():
        _, text = run("check", FILE, "--json", "--kernel", name, "--cpu", model)
        document = json.loads(text)
        errors = {one["rule"] for one in document["findings"] if one["severity"] == "error"}
        assert errors == failed
        assert run("check", FILE, "--kernel", name, "--cpu", f"{model},+svm")[0] == 0


def test_words_of_the_cpu_are_in_help() -> None:
    text = " ".join(run("check", "--help")[1].split())
    for word in ("EPYC[-v1…5]", "host, max", "nrip-save", "phys-bits=N"):
        assert word in text
    code, said = run("check", "nothing", "--cpu", "EPYC,+smv")
    assert code == 2
    assert "near it: svm" in said


def test_models_and_features_are_completed() -> None:
    def completed(text: str) -> list[str]:
        found = ShellComplete(cli, {}, "svmstream", "_").get_completions(["check", "--cpu"], text)
        return [one.value for one in found]

    assert {"EPYC", "EPYC-Rome-v5"} <= set(completed("EPYC"))
    assert completed("EPYC,+sv") == ["EPYC,+svm"]
    assert completed("EPYC,+svm,-um") == ["EPYC,+svm,-umip"]


@pytest.mark.qemu
def test_a_version_or_a_binary(command: Run) -> None:
    program = shutil.which("qemu-system-x86_64")
    assert program is not None
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"version (\d+\.\d+\.\d+)", said.stdout)
    assert found is not None
    version = found[1]
    line = version.rpartition(".")[0]
    assert qemus.version(program) == version
    assert qemus.version("v7.2") == "7.2"
    assert qemus.binary(program) == program
    assert qemus.binary(version) == qemus.binary(line) == program
    assert qemus.line(program) == line
    by_version = command("compat", FILE, "--qemu", line)
    assert by_version.stdout == command("compat", FILE, "--qemu", program).stdout
    assert by_version.returncode == 0
    assert command("check", FILE, "--kernel", "6.1", "--qemu", program).returncode == 0


@pytest.mark.qemu
def test_a_qemu_of_the_cache(command: Run) -> None:
    from qemu_svm.lab.suites import build
    from qemu_svm.lab.suites.catalogue import of_qemu

    build.need(of_qemu("10.0"))
    done = command("compat", FILE, "--qemu", "10.0", "--json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    assert document["accepted"] is True


@pytest.mark.parametrize("value", ["/bin/true", "no-such-qemu", "7.x"])
def test_neither_a_version_nor_a_binary(value: str) -> None:
    for verb in (("check", FILE), ("lab", "build")):
        code, text = run(*verb, "--qemu", value)
        assert code == 2
        assert value in text


def test_a_version_that_is_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(EnvironmentFault, match=r"no QEMU 9\.0") as error:
        qemus.binary("9.0")
    assert error.value.hint == "give the binary itself"
    with pytest.raises(EnvironmentFault) as error:
        qemus.binary("11.1")
    assert error.value.hint == "svmstream lab build --qemu 11.1"
    with pytest.raises(click.BadParameter, match="the lab has no QEMU 9"):
        qemus.line("9.0")
