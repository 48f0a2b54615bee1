"""``svmstream compat`` with the installed QEMU, with dumps and with impostors."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from qemu_svm.stream.constants import RecordType
from tests.conftest import STREAMS, Run
from tests.support import builders

pytestmark = pytest.mark.qemu

QEMU = "qemu-system-x86_64"
OLD = STREAMS / "qemu5.2-linux5.10-nested.mig.zst"
SAME = STREAMS / "qemu7.2-linux6.1-nested-npt.mig.zst"
NEW = [STREAMS / "qemu10.0-linux6.12-nested.mig.zst", STREAMS / "qemu11.1-linux7.2-nested.mig.zst"]


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("file", [OLD, SAME])
def test_the_installed_qemu_accepts_it(file: Path, command: Run) -> None:
    done = command("compat", file, "--qemu", QEMU)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"no reason found for" in done.stdout
    assert b"not in dump  ram, timer, cpu_common, cpu," in done.stdout


@pytest.mark.parametrize("file", NEW)
def test_it_has_no_such_machine(file: Path, command: Run) -> None:
    done = command("compat", file, "--qemu", QEMU)
    assert done.returncode == 1
    assert b"does not have the machine type" in done.stdout


def test_json_and_a_dump(tmp_path: Path, command: Run) -> None:
    path = tmp_path / "vmstate"
    subprocess.run([QEMU, "-M", "pc-i440fx-7.2", "-dump-vmstate", path], check=True)
    made = json.loads(command("compat", SAME, "--qemu", path, "--json").stdout)
    assert made["schema_version"] == 1
    assert made["accepted"] is True
    assert made["target"] == {"qemu": str(path), "dumped_for": "pc-i440fx-7.2"}
    assert "cpu" in made["not_in_dump"]
    assert all(one["severity"] == "info" for one in made["findings"])
    document = json.loads(path.read_text())
    document["mc146818rtc"]["Description"].update(version_id=2)
    path.write_text(json.dumps(document))
    done = command("compat", SAME, "--qemu", path, "--json")
    assert done.returncode == 1
    (bad,) = [one for one in json.loads(done.stdout)["findings"] if one["severity"] == "error"]
    assert bad["rule"] == "version"
    assert bad["path"] == "section:mc146818rtc"
    assert bad["offset"]


@pytest.mark.parametrize(
    "text",
    ["exit 1", "exit 0", "kill -9 $$", 'case "$*" in *help*) exit 0;; esac; exit 3'],
)
def test_a_qemu_that_fails(text: str, tmp_path: Path, command: Run) -> None:
    done = command("compat", SAME, "--qemu", script(tmp_path / "qemu", text))
    assert done.returncode == 4
    assert done.stderr.startswith(b"svmstream: ")
    assert b"Traceback" not in done.stderr


def test_a_qemu_that_hangs(tmp_path: Path, command: Run) -> None:
    slow = script(tmp_path / "qemu", "exec sleep 100")
    done = command("compat", SAME, "--qemu", slow, "--timeout", "1")
    assert done.returncode == 4
    assert b"no answer in 1 seconds" in done.stderr


def test_no_program_at_all(tmp_path: Path, command: Run) -> None:
    for target in (tmp_path / "none", tmp_path / "none.json", tmp_path, Path(__file__)):
        assert command("compat", SAME, "--qemu", target).returncode == 4, target


def test_a_dump_that_is_none(tmp_path: Path, command: Run) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    done = command("compat", SAME, "--qemu", path)
    assert done.returncode == 3
    assert b"-dump-vmstate" in done.stderr


def test_a_stranger_s_machine_name_reaches_no_command_line(tmp_path: Path, command: Run) -> None:
    log = tmp_path / "log"
    text = f'echo "$@" >> {log}\nexec {QEMU} "$@"'
    data = builders.stream(config=builders.configuration("pc,firmware=/etc/passwd"))
    done = command("compat", "-", "--qemu", script(tmp_path / "qemu", text), input=data)
    assert done.returncode == 1
    assert "firmware" not in log.read_text()
    assert "-M none -dump-vmstate" in log.read_text()


def test_no_files_are_left(tmp_path: Path, command: Run) -> None:
    env = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin"}
    assert command("compat", SAME, "--qemu", QEMU, env=env).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_usage_and_unreadable(tmp_path: Path, command: Run) -> None:
    assert command("compat", SAME).returncode == 2
    assert command("compat", SAME, "--qemu", QEMU, "--timeout", "0").returncode == 2
    assert command("compat", tmp_path / "none", "--qemu", QEMU).returncode == 3
    cut = builders.stream()[:-5]
    assert cut[0] != RecordType.EOF
    assert command("compat", "-", "--qemu", QEMU, input=cut).returncode == 3
