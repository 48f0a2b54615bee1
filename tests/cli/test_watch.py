"""``watch`` as a command, in pipes and on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu_svm.qmp import sync
from tests.conftest import Run
from tests.qmp.vm import Vm, running

PROGRAM = Path(sys.executable).with_name("svmstream")
ENDLESS = 4096  # bytes a second


def migrate(vm: Vm, bandwidth: int, uri: str = "exec:cat >/dev/null") -> None:
    with driving(vm) as qmp:
        qmp.execute("migrate-set-parameters", {"max-bandwidth": bandwidth})
        qmp.execute("migrate", {"uri": uri})


def driving(vm: Vm) -> sync.Connection:
    """A second socket, for whoever drives the VM while it is watched."""
    return sync.connect(f"unix:{vm.socket.with_name('second.qmp')}")


def end(vm: Vm) -> None:
    """Let the migration come to its end."""
    with driving(vm) as qmp:
        qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 30})


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    second = f"unix:{tmp_path}/second.qmp,server=on,wait=off"
    with running(tmp_path, "-qmp", second, memory=64) as machine:
        yield machine


def watching(vm: Vm, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [PROGRAM, "watch", "--qmp", vm.address, "--interval", "0.1", *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_from_begin_to_end(vm: Vm, command: Run) -> None:
    done = command("watch", "--qmp", vm.address)
    assert done.returncode == 1
    assert b"--wait" in done.stderr
    migrate(vm, ENDLESS)
    process = watching(vm, "--json")
    assert process.stdout is not None
    text = [process.stdout.readline() for _ in range(4)]
    end(vm)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    lines = [json.loads(line) for line in [*text, *rest.splitlines()]]
    assert {line["status"] for line in lines[:4]} == {"active"}
    assert lines[-1]["status"] == "completed"
    assert lines[-1]["ended"]
    assert lines[-1]["times_ms"]["downtime"] is not None
    assert any(line["rates"]["wire"] for line in lines)
    # What is set: in the first line, and when it changed.
    first, *others = [line["settings"] for line in lines if line["settings"] is not None]
    assert first["parameters"]["max-bandwidth"] == ENDLESS
    assert first["capabilities"]["events"] is False
    assert [one["parameters"]["max-bandwidth"] for one in others] == [1 << 30]
    assert lines[-1]["query_migrate"]["ram"]["transferred"] == lines[-1]["ram"]["transferred"]
    # One that has ended is shown with its result.
    done = command("watch", "--qmp", vm.address)
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    assert b"completed" in line
    done = command("watch", "--qmp", vm.address, "--fields", "status,ram.remaining,ended")
    assert done.stdout == b"completed\t0\ttrue\n"


def test_failed(vm: Vm, command: Run) -> None:
    migrate(vm, 1 << 30, "exec:exit 3")
    done = command("watch", "--qmp", vm.address, "--interval", "0.1")
    assert done.returncode == 5
    assert b"failed  guest running" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_leave_the_vm_alone(vm: Vm, number: signal.Signals) -> None:
    migrate(vm, ENDLESS)
    process = watching(vm)
    assert process.stdout is not None
    assert b"active" in process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"interrupted" in errors
    with driving(vm) as qmp:
        assert qmp.migration().status == "active"
        assert qmp.status().running


def test_qemu_ends(vm: Vm) -> None:
    process = watching(vm, "--wait")
    assert process.stdout is not None
    assert b"no migration" in process.stdout.readline()
    vm.kill()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 4
    assert b"the connection was lost" in errors


def test_a_reader_that_leaves(vm: Vm) -> None:
    migrate(vm, ENDLESS)
    process = watching(vm, "--json")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr is not None
    assert process.stderr.read() == b""


def test_nobody_there(tmp_path: Path, command: Run) -> None:
    done = command("watch", "--qmp", f"unix:{tmp_path}/none")
    assert done.returncode == 4
    assert b"no such socket" in done.stderr


def test_on_a_terminal(vm: Vm) -> None:
    migrate(vm, ENDLESS)
    near, far = pty.openpty()
    fcntl.ioctl(far, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen(
        [PROGRAM, "watch", "--qmp", vm.address, "--interval", "0.1"],
        stdin=far, stdout=far, stderr=far, env=os.environ | {"TERM": "xterm", "NO_COLOR": "1"},
    ) as process:  # fmt: skip
        os.close(far)
        shown = b""
        ending = False
        while True:
            try:
                shown += os.read(near, 1 << 16)
            except OSError:  # the other side of a terminal is gone
                break
            if not ending and shown.count(b"active") > 2:
                ending = True
                end(vm)
    os.close(near)
    assert process.returncode == 0
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1  # the cursor is back
    plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", shown)
    assert b"[##" in plain
    assert b"max-bandwidth 4 KiB/s" in plain
    # The path of the socket may make the line too long for the screen.
    assert b"completed, guest postmigrate" in re.sub(rb"\s+", b" ", plain)
    assert max(map(len, plain.replace(b"\r", b"\n").splitlines())) <= 80
