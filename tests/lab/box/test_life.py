"""Whatever ends a box, its user or its emulator: it is told, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu_svm.errors import LabError
from qemu_svm.lab import Box
from qemu_svm.lab.box import box as box_module
from qemu_svm.lab.box import emulator
from qemu_svm.lab.suites import build
from qemu_svm.lab.suites import catalogue as suites
from tests.lab.processes import Place, place, until

FOREVER = ("lab", "run", "--kernel", "6.1", "--", "sh", "-c", "echo here; exec sleep 1000")


@pytest.fixture
def here() -> Iterator[Place]:
    with place() as made:
        yield made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_the_command_ends_all(here: Place, number: signal.Signals) -> None:
    process = here.start(*FOREVER)
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    assert any("qemu-system-x86_64" in line for line in here.processes())
    process.send_signal(number)
    assert process.wait(timeout=60) == (-number if number == signal.SIGKILL else 130)
    here.wait_until_nothing_is_left()


@pytest.mark.parametrize("moment", [0.0, 0.02, 0.1, 0.5, 1.5])
def test_a_signal_during_the_start_ends_all(here: Place, moment: float) -> None:
    """A moment after the first file."""
    process = here.start(*FOREVER)
    until(lambda: list(here.path.glob("svmbox-*")))
    time.sleep(moment)
    process.send_signal(signal.SIGINT)
    _out, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors == b"\nsvmstream: interrupted\n"
    here.wait_until_nothing_is_left()


def test_a_kernel_that_crashes_is_told() -> None:
    with Box(kernel="6.1") as box:
        share, pid = box.share, box.pid
        with pytest.raises(LabError, match="the kernel in the box crashed: Kernel panic"):
            box.run(["sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000"], timeout=60)
        trouble = box.oops()
        assert trouble is not None
        assert "sysrq_handle_crash" in trouble
        with pytest.raises(LabError, match="the kernel in the box crashed"):
            box.run(["true"])
    assert not share.parent.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_an_emulator_that_is_killed_is_told() -> None:
    with Box(kernel="6.1") as box:
        waiting = box.start(["sleep", "1000"])
        os.kill(box.pid, signal.SIGKILL)
        with pytest.raises(LabError, match=r"the emulator ended .status -9"):
            waiting.wait(timeout=60)
        with pytest.raises(LabError, match=r"the emulator ended .status -9"):
            box.run(["true"], timeout=60)
    assert not box.share.parent.exists()


def test_a_box_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with Box(kernel="6.1") as box:
        monkeypatch.setattr(box_module, "SILENCE_LIMIT", 1.0)
        os.kill(box.pid, signal.SIGSTOP)
        with pytest.raises(LabError, match="the box hangs: no answer"):
            box.run(["true"])
    assert not box.share.parent.exists()


def test_an_emulator_that_does_not_start_is_told(here: Place) -> None:
    result = here.run("lab", "run", "--cpu", "Nonsense", "true")
    assert result.returncode == 4
    assert b"the emulator ended (status 1)" in result.stderr
    assert b"Nonsense" in result.stderr
    here.wait_until_nothing_is_left()


def test_a_tmpdir_too_long_for_sockets_is_told(here: Place) -> None:
    deep = here.path / ("deep" * 20)
    deep.mkdir()
    here.environment["TMPDIR"] = str(deep)
    result = here.run("lab", "run", "true")
    assert result.returncode == 4
    assert b"set TMPDIR to a shorter one" in result.stderr
    assert list(deep.iterdir()) == []


@pytest.mark.parametrize("qemu", ["7.2", "10.0"])
def test_emulators_of_the_cache_find_their_parts(qemu: str) -> None:
    """Their accelerator is a module of its own, not the one of the host's QEMU."""
    with build.using(suites.of_qemu(qemu)) as built:
        done = subprocess.run(
            [*emulator.program(built), "-accel", "tcg", "-nodefaults", "-display", "none", "-S",
             "-monitor", "stdio"],
            input=b"info version\nquit\n", capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert f"QEMU {qemu}".encode() in done.stdout


def test_a_host_without_qemu_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=r"is not installed.*--emulator"), Box(kernel="6.1"):
        pass


def test_another_user_land_emulator_and_no_nested_paging(box_6_12: Box) -> None:
    script = "uname -r; cat /sys/module/kvm_amd/parameters/npt; nproc; qemu-system-x86_64 --version"
    lines = box_6_12.run(["sh", "-c", script], timeout=60).stdout.decode().splitlines()
    assert lines[0].startswith("6.12.")
    assert lines[1:3] == ["N", "2"]
    assert "version 7.2." in lines[3]
    assert box_6_12.versions["emulator"].startswith("10.0.")
