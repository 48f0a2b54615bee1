"""``lab capture`` and ``lab restore`` as commands, in the box that all tests share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qemu_svm.cli import cli
from qemu_svm.cli.lab import capture, restore
from qemu_svm.lab import Box
from tests.conftest import STREAMS, Run


@pytest.fixture
def command(box: Box, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a verb of the lab with the shared box in place of one of its own."""

    @contextmanager
    def shared(_name: str | None, _options: dict[str, Any]) -> Iterator[Box]:
        yield box

    monkeypatch.setattr(capture, "session", shared)
    monkeypatch.setattr(restore, "session", shared)

    def run(*args: str | Path) -> Result:
        runner = CliRunner()
        return runner.invoke(cli, ["lab", *map(str, args)], standalone_mode=False)

    return run


def test_capture_restore_and_their_records(command: Any, tmp_path: Path, svmstream: Run) -> None:
    dump, log = tmp_path / "dump.bin.zst", tmp_path / "ioctls.log"
    done = command("capture", "--guest", "nested-npt", "-o", dump, "--count", "2", "--json",
                   "--trace-ioctls", log)  # fmt: skip
    assert done.exit_code == 0, done.output
    captures = json.loads(done.output)["captures"]
    names = [tmp_path / f"dump-{number}.bin.zst" for number in (1, 2)]
    assert [Path(one["file"]) for one in captures] == names
    for name, record in zip(names, captures, strict=True):
        assert json.loads(name.with_name(name.name + ".json").read_text()) == record
        assert record["versions"]["kernel"].startswith("6.1.")
        assert record["vcpus"][0]["flags"] == "0x101"
        seen = json.loads(svmstream("inspect", name, "--json").stdout)
        assert seen["vcpus"][0]["nested"]["control"]["nested_ctl"] == "0x1"
        assert svmstream("check", name, "--kernel", "6.1").returncode == 0
    assert b"type 0xc080aebe" in log.read_bytes()  # KVM_GET_NESTED_STATE, by the save
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["ioctls.log", *(name.name + suffix for name in names for suffix in ("", ".json"))]
    )
    done = command("restore", names[1], "--json")
    assert done.exit_code == 0, done.output
    outcome = json.loads(done.output)
    assert outcome["verdict"] == "goes on"
    assert outcome["guest"] == "nested-npt"
    assert {"exits", "l2"} <= set(outcome["moved"])


def test_a_stream_that_qemu_refuses(command: Any) -> None:
    """A machine type of the future: exit status 5 and QEMU's own words."""
    newer = STREAMS / "qemu10.0-linux6.12-nested.mig.zst"
    done = command("restore", newer)
    assert done.return_value == 5
    assert "refused" in done.output
    assert "pc-i440fx-10.0" in done.output
    assert "(Q-02)" in done.output


def test_a_stranger_is_watched_by_its_registers(command: Any) -> None:
    """These captures are of another L1, which has no counters in memory."""
    done = command("restore", STREAMS / "qemu7.2-linux6.1-nested-npt.mig.zst")
    assert done.return_value == 0, done.output
    assert "registers change" in done.output


def test_guests_are_listed(svmstream: Run) -> None:
    text = svmstream("lab", "capture", "--guests").stdout.decode()
    assert "nested-npt" in text
    listed = json.loads(svmstream("lab", "capture", "--guests", "--json").stdout)
    assert {"name", "about", "mode", "nested_paging", "vcpus", "counters"} == set(
        listed["guests"][0]
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["-o", "x", "--guest", "nestd"], b"unknown guest 'nestd'"),
        (["--guest", "nested"], b"Missing option '-o'"),
        (["-o", "/no/such/folder/x"], b"there is no directory"),
        (["-o", "x", "--npt", "maybe"], b"Invalid value for '--npt'"),
    ],
)
def test_usage(args: list[str], words: bytes, svmstream: Run, tmp_path: Path) -> None:
    done = svmstream("lab", "capture", *args, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--host", "6.1"], b"unknown host '6.1'; a host is KERNEL/QEMU"),
        (["--guest", "linux"], b"takes too long"),
        (["--guest", "nestd"], b"unknown guest 'nestd'"),
    ],
)
def test_usage_of_the_matrix(args: list[str], words: bytes, svmstream: Run) -> None:
    done = svmstream("lab", "matrix", *args)
    assert done.returncode == 2
    assert words in done.stderr


def test_existing_files_are_kept(svmstream: Run, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("mine")
    done = svmstream("lab", "capture", "-o", tmp_path / "x")
    assert done.returncode == 2
    assert b"x.json' exists already; -f replaces it" in done.stderr
    assert (tmp_path / "x.json").read_text() == "mine"
