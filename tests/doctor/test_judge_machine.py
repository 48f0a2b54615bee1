"""Folders, programs, the lab, the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu_svm.doctor import judge_machine
from qemu_svm.doctor.model import Check, CheckState
from qemu_svm.lab.suites import cache

BOUNDLESS = 1 << 62


def places(folder: Path, ram: int = 0) -> dict[str, Check]:
    return {one.name: one for one in judge_machine.judge_places(folder, ram)}


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "yet"))
    told = places(tmp_path / "captures")
    assert told["captures"].state is CheckState.OK
    assert told["captures"].found.startswith(f"{tmp_path}/captures, ")
    assert told["lab's cache"].state is CheckState.OK
    assert list(tmp_path.iterdir()) == []
    told = places(tmp_path, BOUNDLESS)
    assert told["captures"].state is CheckState.MISSING
    assert told["captures"].needed_for == {"capture"}


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not even by root.
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/1")
    monkeypatch.setenv("TMPDIR", "/proc")
    told = places(Path("/proc"))
    assert told["temporary"].state is CheckState.MISSING
    assert told["captures"].state is CheckState.MISSING
    assert "XDG_CACHE_HOME" in told["lab's cache"].do


def test_the_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = [suite for suite in judge_machine.SUITES if cache.find(suite)]
    (told,) = judge_machine.judge_lab()
    assert all(f"Linux {suite.kernel}" in told.found for suite in built)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (told,) = judge_machine.judge_lab()
    assert told.state is CheckState.NOTE
    assert "lab build" in told.do
    monkeypatch.setenv("PATH", str(tmp_path))
    (told,) = judge_machine.judge_lab()
    assert told.state is CheckState.MISSING
    assert "apt" in told.found


@pytest.mark.qemu
def test_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {one.name: one for one in judge_machine.judge_programs()}
    assert told["qemu-system-x86_64"].state is CheckState.OK
    monkeypatch.setenv("PATH", str(tmp_path))
    told = {one.name: one for one in judge_machine.judge_programs()}
    assert told["qemu-system-x86_64"].state is CheckState.MISSING
    assert told["qemu-system-x86_64"].do == "apt install qemu-system-x86"
    assert told["lzop"].state is CheckState.NOTE


def test_terminals() -> None:
    assert judge_machine.judge_terminal(80, "utf-8", colour=True).state is CheckState.OK
    assert judge_machine.judge_terminal(60, "utf-8", colour=True).state is CheckState.WARNING
    assert judge_machine.judge_terminal(None, "utf-8", colour=False).state is CheckState.NOTE
