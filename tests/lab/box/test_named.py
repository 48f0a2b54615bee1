"""Boxes that stay: used by several processes, ended by `down`, by a crash, by a signal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.processes import SVMSTREAM, Place, place, until

# One worker runs them, for they share a box.
pytestmark = pytest.mark.xdist_group("box that stays")


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    with place() as made:
        yield made


@pytest.fixture(scope="module")
def stays(here: Place) -> Iterator[dict[str, Any]]:
    """A box that is up, as `lab up` describes it."""
    up = here.run("lab", "up", "--json", "--memory", "1024")
    assert up.returncode == 0, up.stderr
    yield json.loads(up.stdout)["box"]
    down = here.run("lab", "down")
    assert (down.returncode, down.stderr) == (0, b"box is down\n")
    here.wait_until_nothing_is_left()


def test_several_processes_use_it(here: Place, stays: dict[str, Any]) -> None:
    """Each waits for a file that the other one makes inside."""
    script = "touch /tmp/{}; while [ ! -e /tmp/{} ]; do sleep 0.1; done; echo met"
    one = here.start("lab", "run", "sh", "-c", script.format("one", "two"))
    two = here.run("lab", "run", "--name", "box", "sh", "-c", script.format("two", "one"))
    assert two.stdout == one.communicate(timeout=60)[0] == b"met\n"


def test_the_share_is_there_for_all(here: Place, stays: dict[str, Any]) -> None:
    (Path(stays["share"]) / "in").write_bytes(b"1\n")
    assert here.run("lab", "run", "cp", "/share/in", "/share/out").returncode == 0
    assert (Path(stays["share"]) / "out").read_bytes() == b"1\n"


def test_status_and_streams_are_passed_on(here: Place, stays: dict[str, Any]) -> None:
    done = here.run("lab", "run", "--", "sh", "-c", "printf a; printf b >&2; exit 9")
    assert (done.returncode, done.stdout, done.stderr) == (9, b"a", b"b")
    assert here.run("lab", "run", "sh", "-c", "kill -9 $$").returncode == 137


def test_standard_input_is_passed_on_when_asked(here: Place, stays: dict[str, Any]) -> None:
    data = bytes(range(256)) * 1000
    command = [SVMSTREAM, "lab", "run", "--stdin", "cat"]
    done = subprocess.run(
        command, env=here.environment, input=data, capture_output=True, timeout=60, check=True
    )
    assert done.stdout == data
    without = subprocess.run(
        [*command[:3], "cat"], env=here.environment, input=data, capture_output=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert without.stdout == b""


def test_a_command_ends_with_the_process_that_started_it(
    here: Place, stays: dict[str, Any]
) -> None:
    process = here.start("lab", "run", "sh", "-c", "echo here; exec sleep 1234")
    assert process.stdout is not None
    assert process.stdout.readline() == b"here\n"
    process.kill()
    process.communicate()
    until(lambda: b"sleep 1234" not in here.run("lab", "run", "ps").stdout)


def test_a_time_limit(here: Place, stays: dict[str, Any]) -> None:
    done = here.run("lab", "run", "--timeout", "0.5", "sleep", "1000")
    assert done.returncode == 4
    assert b"did not end within 0.5 s and was killed" in done.stderr


def test_it_is_listed(here: Place, stays: dict[str, Any]) -> None:
    assert stays["options"] == {"memory": 1024}
    listed = json.loads(here.run("lab", "list", "--json").stdout)
    assert listed["boxes"] == [stays]
    built = {entry["suite"]: entry["built"] for entry in listed["suites"]}
    assert built["bookworm"]["packages"]["qemu-system-x86"] == stays["versions"]["qemu"]
    text = here.run("lab", "list").stdout.decode()
    assert re.search(r"^  box +Linux 6\.1\.", text, re.MULTILINE)
    assert re.search(r"^  bookworm .* Linux 6\.1\..* QEMU 1:7\.2", text, re.MULTILINE)


def test_its_name_is_taken(here: Place, stays: dict[str, Any]) -> None:
    again = here.run("lab", "up")
    assert again.returncode == 4
    assert b"a box named box is already up" in again.stderr


def test_a_name_and_options_contradict(here: Place, stays: dict[str, Any]) -> None:
    done = here.run("lab", "run", "--name", "box", "--smp", "2", "true")
    assert done.returncode == 2


@pytest.mark.parametrize("leave", [b"\x04", b"exit\n", signal.SIGTERM])
def test_a_shell(here: Place, stays: dict[str, Any], leave: bytes | signal.Signals) -> None:
    """Its terminal has our size, also when that changes; Ctrl-C is for what runs inside."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(SVMSTREAM, ["svmstream", "lab", "shell"], here.environment)
    try:
        _resize(terminal, 33, 101)
        before = termios.tcgetattr(terminal)
        _expect(terminal, rb"root@box:/share# ")
        os.write(terminal, b"stty size\n")
        _expect(terminal, rb"33 101\r\n.*# ")
        _resize(terminal, 44, 111)
        os.write(terminal, b"sh -c 'echo on$$; exec sleep 1000'\n")
        _expect(terminal, rb"on\d+\r\n")  # from here on Ctrl-C is for it
        os.write(terminal, b"\x03")
        _expect(terminal, rb"# ")
        os.write(terminal, b"stty size\n")
        _expect(terminal, rb"44 111\r\n.*# ")
        os.write(terminal, b"true\n")
        _expect(terminal, rb"# ")
        if isinstance(leave, bytes):
            os.write(terminal, leave)
        else:
            os.kill(pid, leave)
        _pid, status = os.waitpid(pid, 0)
        pid = 0
        assert os.waitstatus_to_exitcode(status) == (0 if isinstance(leave, bytes) else 130)
        assert termios.tcgetattr(terminal) == before
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)


def _resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _expect(terminal: int, pattern: bytes) -> None:
    seen = b""
    while not re.search(pattern, seen, re.DOTALL):
        ready, _out, _errors = select.select((terminal,), (), (), 60)
        assert ready, seen
        seen += os.read(terminal, 4096)


def test_a_shell_needs_a_terminal(here: Place) -> None:
    assert here.run("lab", "shell").returncode == 2


@pytest.mark.parametrize("end", ["keeper", "kernel"])
def test_one_that_dies_leaves_nothing(end: str) -> None:
    with place() as here:
        up = here.run("lab", "up", "--json", "--name", "mine")
        assert up.returncode == 0, up.stderr
        waiting = here.start("lab", "run", "sh", "-c", "echo here; exec sleep 1000")
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"here\n"
        if end == "keeper":
            os.kill(json.loads(up.stdout)["box"]["pid"], signal.SIGKILL)
            said = b"the connection to the box is lost"
        else:
            here.run("lab", "run", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 1000")
            said = b"the kernel in the box crashed: Kernel panic"
        _out, errors = waiting.communicate(timeout=60)
        assert waiting.returncode == 4
        assert said in errors
        until(lambda: json.loads(here.run("lab", "list", "--json").stdout)["boxes"] == [])
        here.wait_until_nothing_is_left()
        assert here.run("lab", "down").returncode == 4


def test_a_start_that_is_killed_leaves_nothing() -> None:
    with place() as here:
        process = here.start("lab", "up")
        until(lambda: list(here.path.glob("svmbox-*")))
        process.kill()
        process.communicate()
        here.wait_until_nothing_is_left()


def test_a_name_is_not_a_path() -> None:
    with place() as here:
        result = here.run("lab", "up", "--name", "../x")
        assert result.returncode == 4
        assert b"invalid name of a box" in result.stderr
