"""A VMM on this host's KVM, recorded in both ways."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import qemu_svm as svm
from qemu_svm.errors import EnvironmentFault
from qemu_svm.recorder.process import find
from qemu_svm.recorder.shapes import KVM_RUN, data_in
from tests.conftest import Run

pytestmark = [
    pytest.mark.qemu,
    pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="needs KVM"),
]
HOW = [
    pytest.param("bpf", marks=pytest.mark.skipif(os.geteuid() != 0, reason="eBPF needs root")),
    "ptrace",
]
SOURCE = Path(__file__).with_name("vmm.c")
SET_REGS, GET_REGS, SET_SREGS, GET_MSRS = 0x4090AE82, 0x8090AE81, 0x4138AE84, 0xC008AE88
CALLS = 2 + 2 * 10
"""Of the VMM: two for the VM; for each vCPU ten, KVM_RUN counted twice."""


@pytest.fixture(scope="module")
def vmm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The VMM, dynamic; beside it a static one."""
    folder = tmp_path_factory.mktemp("vmm")
    for name, options in (("vmm", []), ("static", ["-static"])):
        subprocess.run(
            ["gcc", "-O1", "-Wall", *options, "-o", folder / name, SOURCE, "-lpthread"], check=True
        )
    return folder / "vmm"


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Header and calls of a recording in JSON lines."""
    head, *records = map(json.loads, path.read_text().splitlines())
    return head, [one for one in records if "kind" not in one]


def by_thread(calls: list[dict[str, Any]]) -> list[list[tuple[int, int]]]:
    """Number and result of each thread's calls, but KVM_RUN, which is not always recorded."""
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for call in calls:
        if int(call["nr"], 16) != KVM_RUN:
            found[call["tid"]].append((int(call["nr"], 16), call["ret"]))
    return sorted(found.values())


@pytest.fixture(scope="module")
def strace(vmm: Path) -> list[list[tuple[int, int]]]:
    """The same by strace."""
    log = vmm.with_name("strace.log")
    subprocess.run(
        ["strace", "-f", "-e", "trace=ioctl", "-e", "raw=ioctl", "-o", log, vmm], check=True
    )
    calls = [
        {
            "tid": int(found[1]),
            "nr": found[2],
            "ret": -14 if "EFAULT" in found[3] else int(found[3], 16),
        }
        for found in re.finditer(
            r"^(\d+) +(?:ioctl\(\w+, (0x\w+), .*?\)|<\.\.\. ioctl resumed>\)) += (.*)$",
            _joined(log.read_text()), re.MULTILINE,
        )
    ]  # fmt: skip
    return by_thread(calls)


def _joined(text: str) -> str:
    # Lines that were interrupted by another thread, in one piece.
    waiting: dict[str, str] = {}
    lines = []
    for line in text.splitlines():
        tid = line.split()[0]
        if line.endswith("<unfinished ...>"):
            waiting[tid] = line.removesuffix(" <unfinished ...>")
        elif "resumed>" in line:
            lines.append(waiting.pop(tid) + line.partition("resumed>")[2])
        else:
            lines.append(line)
    return "\n".join(lines)


@pytest.mark.parametrize("kind", ["vmm", "static"])
@pytest.mark.parametrize("how", HOW)
def test_a_command(
    how: str, kind: str, vmm: Path, strace: Any, tmp_path: Path, command: Run
) -> None:
    out = tmp_path / "vmm.jsonl"
    done = command("record", "-o", out, "--how", how, "--", vmm.with_name(kind), "5")
    assert done.returncode == 5, done.stderr
    assert f"{CALLS} calls, 1 VM, 2 vCPUs, nothing lost ({how}".encode() in done.stderr
    assert out.stat().st_mode & 0o777 == 0o600
    head, calls = read(out)
    assert head["svmstream-recording"] == 1
    assert by_thread(calls) == strace
    for index in range(2):
        mine = [one for one in calls if (one["level"], one["index"]) == ("vcpu", index)]
        names = [int(one["nr"], 16) for one in mine]
        runs = [one for one in mine if int(one["nr"], 16) == KVM_RUN]
        assert [one["out"] for one in runs] == ["02000000", "05000000"]  # I/O, HLT
        if how == "bpf":
            assert [one["runs"] for one in runs] == [0, 3]
        given = bytes.fromhex(mine[names.index(SET_REGS)]["in"])
        assert len(given) == 144
        assert int.from_bytes(given[:8], "little") == 0x1234 + index
        assert int.from_bytes(given[128:136], "little") == 0x1000  # rip
        assert len(mine[names.index(SET_SREGS)]["in"]) == 2 * 312
        got = bytes.fromhex(mine[names.index(GET_REGS)]["out"])
        assert got[:8] == given[:8]
        assert int.from_bytes(got[128:136], "little") == 0x1006
        msrs = mine[names.index(GET_MSRS)]
        assert (len(msrs["in"]), len(msrs["out"]), msrs["ret"]) == (80, 80, 2)
        failed = mine[[one["ret"] for one in mine].index(-14)]
        assert failed["in"] == ""


@pytest.mark.parametrize("how", HOW)
def test_what_a_command_starts(how: str, vmm: Path, tmp_path: Path, command: Run) -> None:
    out = tmp_path / "vmm.jsonl"
    script = f"{vmm} 3; {vmm.with_name('static')} fork 4"
    done = command("record", "-o", out, "--how", how, "--", "sh", "-c", script)
    assert done.returncode == 4, done.stderr
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2
    assert [len(read(one)[1]) for one in files] == [CALLS, CALLS]
    names = {Path(read(one)[0].get("exe", "")).name for one in files}
    assert names <= {"vmm", "static", ""}  # a program that has ended has no name


@pytest.fixture
def server(vmm: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A VMM that runs already, with an ioctl every 2 ms."""
    with subprocess.Popen([vmm, "serve"], stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"ready\n"
        yield started
        started.kill()


def recording(pid: int, out: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start to record, and wait for the first calls."""
    program = Path(sys.executable).with_name("svmstream")
    started = subprocess.Popen(
        [program, "record", "--pid", str(pid), "-o", out, *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + 30
    while not out.exists() or out.read_bytes().count(b"0xae00") < 2:
        assert started.poll() is None, started.stderr and started.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)
    return started


def works(process: subprocess.Popen[bytes]) -> bool:
    """Whether it runs: no tracer, not stopped, and time passes for it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    before = Path(f"/proc/{process.pid}/schedstat").read_text()
    time.sleep(0.05)
    moved = Path(f"/proc/{process.pid}/schedstat").read_text() != before
    return "TracerPid:\t0\n" in status and "State:\tT" not in status and moved


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("how", HOW)
def test_a_process_that_runs_is_not_hurt(
    how: str, end: signal.Signals, server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    out = tmp_path / "vmm.jsonl"
    with recording(server.pid, out, "--how", how, "--json") as recorder:
        recorder.send_signal(end)
        printed, errors = recorder.communicate(timeout=30)
    assert works(server)
    head, calls = read(out)
    assert head["pid"] == server.pid
    assert {(one["level"], int(one["nr"], 16)) for one in calls} == {("system", 0xAE00)}
    if end == signal.SIGKILL:
        return
    assert recorder.returncode == 0, errors
    document = json.loads(printed)
    assert (document["how"], document["interrupted"], document["status"]) == (how, True, None)
    (one,) = document["recordings"]
    assert (one["vms"], one["vcpus"], one["lost"]) == (1, 2, 0)
    assert one["calls"] == len(calls)
    assert (b"by ptrace" in errors) == (how == "ptrace")


@pytest.mark.parametrize("how", HOW)
def test_the_process_ends_first(how: str, server: subprocess.Popen[bytes], tmp_path: Path) -> None:
    with recording(server.pid, tmp_path / "vmm.jsonl", "--how", how) as recorder:
        server.kill()
        printed, errors = recorder.communicate(timeout=30)
    assert recorder.returncode == 0, errors
    assert b"nothing lost" in printed


@pytest.mark.parametrize("how", HOW)
def test_a_command_that_is_killed(how: str, vmm: Path, tmp_path: Path, command: Run) -> None:
    out = tmp_path / "vmm.jsonl"
    script = f"{vmm} serve & sleep 0.2; kill -9 $!; wait $!"
    done = command("record", "-o", out, "--how", how, "--", "sh", "-c", script)
    assert done.returncode == 128 + signal.SIGKILL, done.stderr
    assert len(read(out)[1]) > CALLS


@pytest.mark.parametrize("how", HOW)
def test_signals_are_passed_on_to_a_command(how: str, vmm: Path, tmp_path: Path) -> None:
    out = tmp_path / "vmm.jsonl"
    program = Path(sys.executable).with_name("svmstream")
    with subprocess.Popen(
        [program, "record", "-o", out, "--how", how, "--", vmm, "serve"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as recorder:  # fmt: skip
        assert recorder.stdout is not None
        assert recorder.stdout.readline() == b"ready\n"
        recorder.terminate()
        assert recorder.wait(30) == 128 + signal.SIGTERM
    assert len(read(out)[1]) >= CALLS


@pytest.mark.skipif(os.geteuid() != 0, reason="eBPF needs root")
def test_pid_namespaces(vmm: Path, tmp_path: Path, svmstream: Run) -> None:
    """A recorder in a container; and one outside, by the number that the process has there."""
    inside = ["unshare", "-pf", "--mount-proc", "--kill-child"]
    program = Path(sys.executable).with_name("svmstream")
    out = tmp_path / "inside.jsonl"
    script = f"{vmm} 3; {vmm} 4"
    subprocess.run(
        [*inside, program, "record", "--how", "bpf", "-o", out, "--", "sh", "-c", script],
        check=False, capture_output=True,
    )  # fmt: skip
    for one in sorted(tmp_path.iterdir()):
        head, calls = read(one)
        assert head["pid"] < 20
        assert len(calls) == CALLS
    assert len(list(tmp_path.iterdir())) == 2
    with subprocess.Popen([*inside, vmm, "serve"], stdout=subprocess.PIPE) as outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == b"ready\n"
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        with recording(int(children[0]), tmp_path / "outside.jsonl", "--how", "bpf") as recorder:
            recorder.terminate()
            assert recorder.wait(30) == 0
        outer.kill()


@pytest.mark.parametrize("how", HOW)
def test_qemu_restores_a_stream(how: str, tmp_path: Path) -> None:
    """What QEMU puts on this host's KVM is what its stream says."""
    qemu = ["qemu-system-x86_64", "-accel", "kvm", "-M", "pc", "-m", "16", "-nodefaults",
            "-display", "none", "-monitor", "stdio"]  # fmt: skip
    stream, out = tmp_path / "vm.mig", tmp_path / "vmm.jsonl"
    commands = f'migrate "exec:cat > {stream}"\nquit\n'.encode()
    subprocess.run(qemu, input=commands, check=True, capture_output=True, timeout=60)
    with svm.open(stream) as dump:
        rip = dump.vcpus[0].registers.rip
    program = Path(sys.executable).with_name("svmstream")
    with subprocess.Popen(
        [program, "record", "--how", how, "-o", out, "--", *qemu, "-incoming",
         f"exec:cat {stream}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as recorder:  # fmt: skip
        until = time.monotonic() + 30
        while not out.exists() or b'"runs"' not in out.read_bytes():
            assert time.monotonic() < until
            time.sleep(0.02)
        _printed, errors = recorder.communicate(b"quit\n", timeout=30)
    assert recorder.returncode == 0, errors
    put = [bytes.fromhex(one) for one in only(out, SET_REGS, "in")]
    assert rip in {int.from_bytes(one[128:136], "little") for one in put}
    assert len(only(out, KVM_RUN, "out")) >= 1
    assert len(only(out, SET_SREGS, "in")) + len(only(out, 0x4140AECD, "in")) >= 2


def test_the_progress_on_a_terminal(server: subprocess.Popen[bytes], tmp_path: Path) -> None:
    import pty

    main, terminal = pty.openpty()
    program = Path(sys.executable).with_name("svmstream")
    with subprocess.Popen(
        [program, "record", "--pid", str(server.pid), "-o", tmp_path / "x.rec"],
        stdout=subprocess.PIPE, stderr=terminal,
    ) as recorder:  # fmt: skip
        os.close(terminal)
        shown = b""
        while b"(Ctrl-C ends it)" not in shown:
            shown += os.read(main, 4096)
        recorder.send_signal(signal.SIGINT)
        assert recorder.wait(30) == 0
    os.close(main)
    assert re.search(rb"\r\x1b\[K\d+ calls, 1 VM, 2 vCPUs, nothing lost", shown)


@pytest.mark.parametrize("how", HOW)
def test_a_recorder_that_is_killed(how: str, vmm: Path, tmp_path: Path) -> None:
    """By eBPF the command goes on; by ptrace its ioctls would fail, so it is killed too."""
    out, pid = tmp_path / "vmm.jsonl", tmp_path / "pid"
    program = Path(sys.executable).with_name("svmstream")
    script = f"echo $$ > {pid}; exec {vmm} serve"
    with subprocess.Popen(
        [program, "record", "-o", out, "--how", how, "--", "sh", "-c", script],
        stdout=subprocess.PIPE,
    ) as recorder:
        assert recorder.stdout is not None
        assert recorder.stdout.readline() == b"ready\n"
        until = time.monotonic() + 30
        while out.read_bytes().count(b'"nr"') <= CALLS:
            assert time.monotonic() < until
            time.sleep(0.02)
        left = find(int(pid.read_text()))
        recorder.kill()
    assert len(read(out)[1]) > CALLS
    if how == "bpf":
        time.sleep(0.1)
        assert left.is_alive()
        os.kill(left.pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while left.is_alive():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("how", HOW)
def test_several_vms_of_one_process(how: str, tmp_path: Path, command: Run) -> None:
    code = (
        "import fcntl, os\n"
        "kvm = os.open('/dev/kvm', 2)\n"
        "vms = [fcntl.ioctl(kvm, 0xAE01, 0) for _ in range(2)]\n"
        "vcpus = [fcntl.ioctl(vm, 0xAE41, 7) for vm in vms]\n"
        "for fd in vcpus: fcntl.ioctl(fd, 0x8090AE81, bytes(144))\n"
        "os.close(vcpus[0]); os.close(vms[0])\n"
        "again = os.open('/dev/kvm', 2); assert again == vms[0]\n"
        "assert fcntl.ioctl(again, 0xAE00, 0) == 12\n"
    )
    out = tmp_path / "vmm.jsonl"
    done = command("record", "-o", out, "--how", how, "--", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert b"7 calls, 2 VMs, 2 vCPUs, nothing lost" in done.stderr
    calls = read(out)[1]
    levels = [(one["level"], one["index"]) for one in calls]
    assert levels == [("system", None)] * 2 + [("vm", None)] * 2 + [("vcpu", 7)] * 2 + [
        ("system", None)
    ]


def test_redacted(vmm: Path, tmp_path: Path, command: Run) -> None:
    plain, masked = tmp_path / "plain.jsonl", tmp_path / "masked.jsonl"
    for out, options in ((plain, ()), (masked, ("--redact",))):
        assert command("record", "-o", out, *options, "--", vmm).returncode == 0
    (before,), (after,) = (only(one, 0x4020AE46, "in") for one in (plain, masked))
    assert (after[:48], after[48:]) == (before[:48], "0" * 16) != (before[:48], before[48:])
    for before, after in zip(*(only(one, GET_MSRS, "out") for one in (plain, masked)), strict=True):
        assert after[:48] == before[:48]  # EFER
        assert after[48:64] == "7702000000000000"  # PAT
        assert after[64:] == "0" * 16 != before[64:]


def only(path: Path, number: int, name: str) -> list[str]:
    """The data of all calls of an ioctl."""
    return [one[name] for one in read(path)[1] if int(one["nr"], 16) == number]


def test_what_cannot_be_recorded(tmp_path: Path, command: Run) -> None:
    out = tmp_path / "out"
    here = str(os.getpid())
    existing = tmp_path / "there"
    existing.write_text("precious")
    for options, status, words in (
        (("-o", out, "--pid", "4194304"), 4, b"there is no process 4194304"),
        (("-o", out, "--pid", here), 4, b"does not use KVM"),
        (("-o", out, "--", "/does/not/exist"), 127, b"cannot run '/does/not/exist'"),
        (("-o", out, "--", tmp_path), 126, b"Permission denied"),
        (("-o", existing, "--", "true"), 4, b"exists already"),
        (("-o", tmp_path / "no" / "dir", "--", "true"), 4, b"cannot write"),
        (("-o", out), 2, b"give either --pid PID or -- COMMAND"),
        (("--pid", here), 2, b"give -o OUT"),
        (("-o", out, "--json", "--", "true"), 2, b"--json is for --pid"),
    ):
        done = command("record", *options)
        assert (done.returncode, words in done.stderr) == (status, True), (options, done.stderr)
        assert not out.exists()
    assert existing.read_text() == "precious"


def test_a_thread_is_no_process() -> None:
    seen: list[int] = []
    thread = threading.Thread(
        target=lambda: (seen.append(threading.get_native_id()), time.sleep(0.3))
    )
    thread.start()
    time.sleep(0.05)
    with pytest.raises(EnvironmentFault, match="is a thread"):
        find(seen[0])
    thread.join()


@pytest.mark.parametrize("how", HOW)
def test_the_program_in_one_file(how: str, vmm: Path, tmp_path: Path, svmstream: Run) -> None:
    program = tmp_path / "record.py"
    assert svmstream("record", "--probe", program).returncode == 0
    assert svmstream("record", "--probe", "-").stdout == program.read_bytes()
    out = tmp_path / "vmm.jsonl"
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", program, "-o", out, "--how", how, "--", vmm, "6"],
        capture_output=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert len(read(out)[1]) == CALLS


def test_lists_that_lie() -> None:
    memory = {0x1000: (1 << 32) - 1}

    def at(address: int, size: int) -> bytes | None:
        value = memory.get(address)
        return None if value is None else value.to_bytes(4, "little").ljust(size, b"\0")[:size]

    data = data_in(0x4008AE89, 0x1000, at, 4096)  # KVM_SET_MSRS of 4 billion
    assert data is not None
    assert len(data) == 0x3FFF
    assert data_in(0x4008AE89, 0x2000, at, 4096) is None
