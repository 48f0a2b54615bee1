"""The examples do what they say, with a real guest."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from qemu_svm.qmp import sync
from tests.conftest import ROOT
from tests.qmp.vm import running
from tests.test_rooms import imports

pytestmark = pytest.mark.qemu

EXAMPLES = ROOT / "examples"


def run(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, words)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_series_and_what_changed_in_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with running(tmp_path) as vm:
        done = run("capture_series.py", vm.socket, out, "3", "0.1")
        assert (done.returncode, done.stderr) == (0, "")
        with sync.connect(vm.address) as qmp:
            assert qmp.status().running
    names = ["0000.bin", "0001.bin", "0002.bin"]
    assert sorted(os.listdir(out)) == names
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == names
    done = run("compare_captures.py", *(out / name for name in names))
    assert (done.returncode, done.stderr) == (0, "")
    heads = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert len(heads) == 2
    for head in heads:
        # All 64 counters went on; the guest is in its loop, so RIP or AX moved at most.
        assert int(head.rsplit(" pages", 1)[0].rsplit(" ", 1)[1]) >= 64


def test_on_an_event(tmp_path: Path) -> None:
    second = tmp_path / "second.qmp"
    path = tmp_path / "dump.bin"
    with running(tmp_path, "-qmp", f"unix:{second},server=on,wait=off") as vm:
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / "capture_on_event.py", second, path],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting for GUEST_PANICKED, RESET, WATCHDOG\n"
        assert not path.exists()
        with sync.connect(vm.address) as qmp:
            qmp.execute("system_reset")
            said, _ = process.communicate(timeout=30)
            assert qmp.status().running
    assert process.returncode == 0
    assert said == f"RESET: {path.stat().st_size} bytes in {path}, the guest is running again\n"


def test_twenty_vms_before_an_upgrade(tmp_path: Path) -> None:
    # One QEMU behind many names, and one name with nothing behind it.
    folder = tmp_path / "out"
    folder.mkdir()
    with ExitStack() as stack:
        vms = [stack.enter_context(running(make(tmp_path, number))) for number in range(3)]
        sockets = [str(vm.socket) for vm in vms]
        sockets.insert(1, str(tmp_path / "gone.qmp"))
        done = run("judge_before_upgrade.py", "7.2", folder, *sockets)
        assert done.returncode == 1
        assert done.stdout.splitlines()[-1] == "3 of 4 VMs can be moved to 7.2"
        assert [line.split()[0] for line in done.stdout.splitlines()[:-1]] == ["ok"] * 3
        assert "gone.qmp: not judged" in done.stderr
        assert len(os.listdir(folder)) == 3
        again = run("judge_before_upgrade.py", "7.2", folder, *sockets)
        assert "0 of 4" in again.stdout  # no file is overwritten
        assert "exists" in again.stderr


def make(folder: Path, number: int) -> Path:
    made = folder / f"vm{number}"
    made.mkdir()
    return made


def test_examples_use_the_interface_alone() -> None:
    for path in EXAMPLES.glob("*.py"):
        names = {name for _, name in imports(path) if name.startswith("qemu_svm")}
        assert names == {"qemu_svm"}, path


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_usage_and_errors(name: str) -> None:
    done = run(name)
    assert done.returncode == 2
    assert "Usage:" in done.stdout
    words = ["7.2"] if name == "judge_before_upgrade.py" else []
    done = run(name, *words, "/none", "/none")
    assert done.returncode == 1
    assert "none" in done.stderr
    assert "Traceback" not in done.stderr
