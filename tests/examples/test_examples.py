"""The examples do what they say, with a real guest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qemu_svm.qmp import sync
from tests.conftest import ROOT
from tests.qmp.vm import running

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
    assert said == f"RESET: {path.stat().st_size} bytes in {path}, the guest runs on\n"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_usage_and_errors(name: str) -> None:
    done = run(name)
    assert done.returncode == 2
    assert "Usage:" in done.stdout
    done = run(name, "/none", "/none")
    assert done.returncode == 1
    assert "none" in done.stderr
    assert "Traceback" not in done.stderr
