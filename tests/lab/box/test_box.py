"""The box: what is in it, commands, sockets, and what is left when it goes."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from qemu_svm.errors import LabError
from qemu_svm.lab import Box


def test_is_an_amd_host_with_nested_kvm(box: Box) -> None:
    script = (
        "test -c /dev/kvm && uname -r && cat /sys/module/kvm_amd/parameters/nested"
        " /sys/module/kvm_amd/parameters/npt && grep -c ' svm ' /proc/cpuinfo"
    )
    done = box.run(["sh", "-c", script], timeout=30)
    release, nested, npt, svm = done.stdout.decode().split()
    assert release.startswith("6.1.")
    assert (nested, npt, svm) == ("1", "Y", "1")
    assert box.versions["kernel"].startswith("6.1.")
    assert box.versions["qemu"].startswith("1:7.2")
    assert box.oops() is None


def test_output_and_status_are_passed_unchanged(box: Box) -> None:
    everything = bytes(range(256)) * 5000
    (box.share / "in").write_bytes(everything)
    done = box.run(["sh", "-c", "cat /share/in; cat /share/in >&2; exit 7"], timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (7, everything, everything)


def test_input_reaches_a_command(box: Box) -> None:
    data = bytes(range(256)) * 10000
    assert box.run(["cat"], stdin=data, timeout=30).stdout == data


def test_a_command_that_a_signal_ended(box: Box) -> None:
    assert box.run(["sh", "-c", "kill -TERM $$"], timeout=30).returncode == -15


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["no-such-command"], "No such file or directory"),
        (["/etc"], "Permission denied"),
        (["echo", "a\0b"], "embedded null byte"),
        (["echo", "x" * 70000], "the limit is 65536"),
    ],
)
def test_a_command_that_cannot_be_started(box: Box, argv: list[str], why: str) -> None:
    with pytest.raises(LabError, match=why):
        box.run(argv, timeout=30)
    assert box.run(["true"], timeout=30).returncode == 0


def test_commands_run_at_the_same_time(box: Box) -> None:
    """Each waits for a file that the next one makes: in sequence they would never end."""
    ended = []

    def run(number: int) -> None:
        other = (number + 1) % 4
        script = f"touch /tmp/meet{number}; while [ ! -e /tmp/meet{other} ]; do sleep 0.1; done"
        ended.append(box.run(["sh", "-c", script], timeout=60).returncode)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [0, 0, 0, 0]


def test_a_command_that_takes_too_long_is_killed(box: Box) -> None:
    with pytest.raises(LabError, match=r"did not end within 0\.5 s and was killed"):
        box.run(["sleep", "987"], timeout=0.5)
    assert b"sleep 987" not in box.run(["ps"], timeout=30).stdout


def test_the_root_file_system_is_read_only(box: Box) -> None:
    done = box.run(["touch", "/usr/bin/mine"], timeout=30)
    assert done.returncode == 1
    assert b"Read-only file system" in done.stderr


def test_a_socket_reaches_the_qmp_of_a_guest_inside(box: Box) -> None:
    guest = box.start(
        ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host,+svm", "-m", "32", "-nodefaults",
         "-display", "none", "-S", "-qmp", "unix:/run/test.qmp,server=on,wait=off"]
    )  # fmt: skip
    path = box.forward("/run/test.qmp")
    try:
        with _greeted(path) as line:
            file = line.makefile("rw")
            assert "QMP" in json.loads(file.readline())
            for command in ("qmp_capabilities", "query-kvm", "quit"):
                print(json.dumps({"execute": command}), file=file, flush=True)
            answers = [json.loads(text) for text in file if "return" in text]
        assert answers[1]["return"] == {"enabled": True, "present": True}
        assert guest.wait(timeout=30).returncode == 0
    finally:
        guest.kill()


def _greeted(path: Path) -> socket.socket:
    # QEMU needs a moment to listen; until then connections are closed at once.
    for _attempt in range(300):
        line = socket.socket(socket.AF_UNIX)
        line.connect(str(path))
        if line.recv(1, socket.MSG_PEEK):
            return line
        line.close()
        time.sleep(0.1)
    raise AssertionError("nothing listens inside")
