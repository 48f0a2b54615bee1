"""Folders, programs, the lab, the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from qemu_svm.doctor import place
from qemu_svm.doctor.model import Check, State
from qemu_svm.lab.suites import cache

BOUNDLESS = 1 << 62


def places(folder: Path, ram: int = 0) -> dict[str, Check]:
    return {one.name: one for one in place.judge_places(folder, ram)}


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "yet"))
    told = places(tmp_path / "captures")
    assert told["captures"].state is State.OK
    assert told["captures"].found.startswith(f"{tmp_path}/captures, ")
    assert told["lab's cache"].state is State.OK
    assert list(tmp_path.iterdir()) == []
    told = places(tmp_path, BOUNDLESS)
    assert told["captures"].state is State.MISSING
    assert told["captures"].needed_for == {"capture"}


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not even by root.
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/1")
    monkeypatch.setenv("TMPDIR", "/proc")
    told = places(Path("/proc"))
    assert told["temporary"].state is State.MISSING
    assert told["captures"].state is State.MISSING
    assert "XDG_CACHE_HOME" in told["lab's cache"].do


def test_the_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = [suite for suite in place.SUITES if cache.find(suite)]
    (told,) = place.judge_lab()
    assert all(f"Linux {suite.kernel}" in told.found for suite in built)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (told,) = place.judge_lab()
    assert told.state is State.NOTE
    assert "lab build" in told.do
    monkeypatch.setenv("PATH", str(tmp_path))
    (told,) = place.judge_lab()
    assert told.state is State.MISSING
    assert "apt" in told.found


def test_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {one.name: one for one in place.judge_programs()}
    assert told["qemu-system-x86_64"].state is State.OK
    monkeypatch.setenv("PATH", str(tmp_path))
    told = {one.name: one for one in place.judge_programs()}
    assert told["qemu-system-x86_64"].state is State.MISSING
    assert told["qemu-system-x86_64"].do == "apt install qemu-system-x86"
    assert told["lzop"].state is State.NOTE


def test_terminals() -> None:
    assert place.judge_terminal(80, "utf-8", colour=True).state is State.OK
    assert place.judge_terminal(60, "utf-8", colour=True).state is State.WARNING
    assert place.judge_terminal(None, "utf-8", colour=False).state is State.NOTE
