"""Captures of a real, busy guest, and everything that can go wrong on the way."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qemu_svm.errors import (
    EnvironmentFault,
    OutputClosed,
    OutputExists,
    QmpError,
    Refused,
    SvmStreamError,
)
from qemu_svm.qmp import Client, sync
from qemu_svm.qmp.answers import Version
from qemu_svm.qmp.capture import Captured, _Capture, capture, capture_stream
from qemu_svm.qmp.features import UNLIMITED, CaptureOptions
from qemu_svm.qmp.receive import Listener, Receiver, pair
from qemu_svm.source import open_source
from qemu_svm.stream import Walk, read_stream
from qemu_svm.stream.ram.extract import extract
from qemu_svm.stream.ram.read import read_ram
from tests.conftest import Run
from tests.qmp.vm import COUNTERS, UNMEASURED, Proxy, Vm, running

PROGRAM = Path(sys.executable).with_name("svmstream")
SLOW = CaptureOptions(bandwidth=1 << 20)


def settings(vm: Vm) -> tuple[Any, ...]:
    """All that must be the same afterwards."""
    with sync.connect(vm.address) as qmp:
        return (
            qmp.capabilities(),
            dict(qmp.parameters()),
            qmp.status(),
            qmp.execute("query-fdsets"),
            qmp.migration().active,
        )


def take(vm: Vm, path: Path, options: CaptureOptions | None = None, **more: Any) -> Captured:
    async def work() -> Captured:
        async with Client.connect(vm.address) as client:
            return await capture(client, str(path), options, **more)

    return asyncio.run(work())


def counters(done: Captured) -> list[int]:
    """The guest's counters in a capture."""
    with ExitStack() as stack:
        source, *channels = (stack.enter_context(open_source(name)) for name in done.files)
        stream = read_stream(source, walk=Walk.QUICK)
        assert stream.complete
        ram = stack.enter_context(read_ram(stream, channels))
        number = ram.block("pc.ram")
        with open(os.path.join(os.path.dirname(done.files[0]), "ram"), "w+b") as file:
            extract(ram, {number: file.fileno()}, None, lambda _done: None)
            found = [os.pread(file.fileno(), 4, address) for address in COUNTERS]
        os.unlink(file.name)
    return [int.from_bytes(one, "little") for one in found]


KINDS = {
    "live": CaptureOptions(),
    "stop": CaptureOptions(live=False),
    "multifd": CaptureOptions(multifd=2),
    "multifd-zlib": CaptureOptions(multifd=1, compression="zlib"),
    "multifd-zstd": CaptureOptions(multifd=3, compression="zstd"),
    "xbzrle": CaptureOptions(xbzrle=True, bandwidth=4 << 20, stop_after=0.4),
    "background-snapshot": CaptureOptions(background_snapshot=True),
    "slow": CaptureOptions(bandwidth=2 << 20, downtime=1000, stop_after=0.5),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_stream_is_complete_and_the_guest_as_before(kind: str, vm: Vm, tmp_path: Path) -> None:
    before = settings(vm)
    done = take(vm, tmp_path / "dump.bin", KINDS[kind])
    assert settings(vm) == before
    names = ["dump.bin"] + [f"dump.bin.channel{n}" for n in range(KINDS[kind].multifd)]
    assert [str(tmp_path / name) for name in names] == list(done.files)
    assert sorted(os.listdir(tmp_path)) == names
    assert done.size == sum((tmp_path / name).stat().st_size for name in names)
    assert done.before == done.after
    assert done.stopped is not None
    assert min(counters(done)) > 0
    assert os.stat(done.files[0]).st_mode & 0o777 == 0o600


def test_progress_and_limits_are_asked_for(vm: Vm, tmp_path: Path) -> None:
    seen: list[Any] = []
    inside: list[Any] = []

    async def work() -> None:
        async with Client.connect(vm.address) as client:
            await capture(client, str(tmp_path / "a"), KINDS["slow"], progress=seen.append)

        async with Client.connect(vm.address) as client:
            task = asyncio.create_task(capture(client, str(tmp_path / "b"), SLOW))
            while not (await client.migration()).active:
                await asyncio.sleep(0.01)
            inside.append((await client.parameters())["max-bandwidth"])
            await client.set_parameters({"max-bandwidth": UNLIMITED})
            await task

    asyncio.run(work())
    assert seen[-1].status == "completed"
    assert any(one.active and one.remaining for one in seen)
    assert inside == [1 << 20]


def test_a_paused_guest_stays_stopped(tmp_path: Path, qemu_7_2: tuple[str, ...]) -> None:
    with running(tmp_path, command=qemu_7_2) as vm:
        with sync.connect(vm.address) as qmp:
            qmp.execute("stop")
        with pytest.raises(Refused, match="resumes a stopped guest"):
            take(vm, tmp_path / "no", CaptureOptions(background_snapshot=True))
        done = take(vm, tmp_path / "dump.bin")
        assert not done.after.running
        first = counters(done)
        with sync.connect(vm.address) as qmp:
            # QEMU's own rule: only running clears what a migration left.
            with pytest.raises(Refused, match="earlier migration"):
                qmp.capture(str(tmp_path / "again"))
            qmp.execute("cont")
        assert min(map(int.__sub__, counters(take(vm, tmp_path / "later")), first)) >= 0


def test_over_tcp(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with running(tmp_path, "-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off") as vm:
        before = settings(vm)
        for options in (CaptureOptions(), CaptureOptions(multifd=2)):
            with sync.connect(f"127.0.0.1:{port}") as qmp:
                done = qmp.capture(str(tmp_path / f"d{options.multifd}"), options)
            assert min(counters(done)) > 0
        assert settings(vm) == before


def test_qemu_writes_the_file_itself(
    vm: Vm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    done = take(vm, folder / "dump.bin", qemu_directory=str(folder))
    assert min(counters(done)) > 0
    monkeypatch.setattr("qemu_svm.qmp.timeouts.ARRIVAL", 0.2)
    with pytest.raises(EnvironmentFault, match="not the file that QEMU wrote"):
        take(vm, folder / "other", qemu_directory=str(tmp_path))
    assert os.listdir(folder) == ["dump.bin"]


# What is refused changes nothing.


def test_what_this_qemu_does_not_have(tmp_path: Path, qemu_7_2: tuple[str, ...]) -> None:
    with running(tmp_path, command=qemu_7_2) as vm:
        before = settings(vm)
        with pytest.raises(Refused, match=r"no mapped-ram \(QEMU has it from 9.0 on\)"):
            take(vm, tmp_path / "dump.bin", CaptureOptions(mapped_ram=True))
        assert settings(vm) == before
    assert not (tmp_path / "dump.bin").exists()


def test_somebody_elses_migration_is_left_alone(tmp_path: Path) -> None:
    second = tmp_path / "second.qmp"
    with (
        running(tmp_path, "-qmp", f"unix:{second},server=on,wait=off") as vm,
        sync.connect(f"unix:{second}") as other,
    ):
        other.execute("migrate-set-parameters", {"max-bandwidth": 64 << 10})
        ours, theirs = socket.socketpair()
        name = other.getfd(theirs.fileno())
        theirs.close()
        other.execute("migrate", {"uri": f"fd:{name}"})
        with pytest.raises(Refused, match="already in progress"):
            take(vm, tmp_path / "dump.bin")
        assert other.migration().active
        assert other.execute("query-migrate-parameters")["max-bandwidth"] == 64 << 10
        other.execute("migrate_cancel")
        ours.close()
    assert not (tmp_path / "dump.bin").exists()


def test_a_blocked_migration(tmp_path: Path) -> None:
    nvme = ("-blockdev", "null-co,node-name=n", "-device", "nvme,serial=1,drive=n")
    with running(tmp_path, *nvme) as vm:
        before = settings(vm)
        with pytest.raises(Refused, match="nvme") as caught:
            take(vm, tmp_path / "dump.bin")
        assert caught.value.__cause__ is not None
        assert settings(vm) == before
        assert before[2].running


def test_a_guest_that_waits_itself(tmp_path: Path) -> None:
    with running(tmp_path, "-incoming", "defer") as vm:
        before = settings(vm)
        with pytest.raises(Refused, match="itself waiting for a stream"):
            take(vm, tmp_path / "dump.bin")
        assert settings(vm) == before


def test_a_guest_that_never_ran_does_not_run_afterwards(tmp_path: Path) -> None:
    with running(tmp_path, "-S") as vm:
        done = take(vm, tmp_path / "dump.bin")
        assert done.before.state == "prelaunch"
        assert counters(done) == [0] * len(COUNTERS)
        assert not settings(vm)[2].running


def test_a_guest_that_has_shut_down(tmp_path: Path) -> None:
    with running(tmp_path, "-no-shutdown", "-M", "pc,acpi=on") as vm:
        with sync.connect(vm.address) as qmp:
            # PM1a_CNT of the PIIX4: S5, as a guest would do it.
            qmp.execute("human-monitor-command", {"command-line": "o /2 0x604 0x2000"})
            if qmp.status().running:
                qmp.execute("human-monitor-command", {"command-line": "o /2 0xb004 0x2000"})
            state = qmp.status().state
        done = take(vm, tmp_path / "dump.bin")
        assert (state, done.before.state) == ("shutdown", "shutdown")
        assert not done.after.running


# Faults.


class Process:
    """A running ``svmstream capture`` behind a proxy."""

    def __init__(self, vm: Vm, folder: Path, *options: str, **more: Any) -> None:
        self.proxy = Proxy(vm.socket, folder)
        self.output = folder / "out" / "dump.bin"
        self.output.parent.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [PROGRAM, "capture", "--qmp", self.proxy.path, "-o", self.output, *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more,
        )  # fmt: skip
        end = time.monotonic() + 30
        while not self.proxy.connections:
            assert time.monotonic() < end
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.002)

    def end(self) -> tuple[int, str]:
        try:
            _, said = self.process.communicate(timeout=60)
        finally:
            self.process.kill()
            self.proxy.close()
        return self.process.returncode, said.decode()

    def wait_for_data(self) -> None:
        """Until something of the stream is in the (hidden) file."""
        while not any(path.stat().st_size for path in self.output.parent.iterdir()):
            assert self.process.poll() is None
            time.sleep(0.005)

    @property
    def files(self) -> list[str]:
        return os.listdir(self.output.parent)


LIMIT = ("--bandwidth", "100k")
WAYS = [(), ("--multifd", "2"), ("--stop",), ("--xbzrle",)]


@pytest.mark.parametrize("group", range(5))
def test_signals_at_random_moments(group: int, vm: Vm, tmp_path: Path) -> None:
    dice = random.Random(group)
    before = settings(vm)
    statuses: list[int] = []
    for turn in range(11):
        number = dice.choice([signal.SIGINT, signal.SIGTERM])
        work = Process(vm, tmp_path, *LIMIT, *WAYS[(group + turn) % len(WAYS)])
        time.sleep(dice.choice([0.0, 0.02, 0.1, 0.4]) * dice.random())
        work.process.send_signal(number)
        if dice.random() < 0.3:
            time.sleep(0.01)
            work.process.send_signal(number)  # an impatient user
        status, said = work.end()
        words = f"interrupted; the guest is as it was before, and there is no '{work.output}'"
        # Once all has been sent it is too late: the file is complete, then.
        channels = 2 if "--multifd" in work.process.args else 0
        names = ["dump.bin", *(f"dump.bin.channel{number}" for number in range(channels))]
        ends = {130: (f"svmstream: {words}\n", []), 0: ("", names)}
        assert (said, sorted(work.files)) == ends.get(status), status
        assert settings(vm) == before
        for name in work.files:
            (work.output.parent / name).unlink()
        statuses.append(status)
    assert statuses.count(130) >= 9


def test_the_line_is_cut_at_random_moments(vm: Vm, tmp_path: Path) -> None:
    dice = random.Random(0)
    before = settings(vm)
    for turn in range(8):
        work = Process(vm, tmp_path, *LIMIT, *WAYS[turn % len(WAYS)])
        time.sleep(0.3 * dice.random())
        work.proxy.cut()
        status, said = work.end()
        assert status == 4
        assert "lost" in said or "closed" in said
        assert "could not be restored" not in said
        assert said.count("\n") == 1
        assert work.files == []
        assert settings(vm) == before


def test_the_line_is_cut_again_while_all_is_put_back(vm: Vm, tmp_path: Path) -> None:
    before = settings(vm)
    work = Process(vm, tmp_path, *LIMIT, "--xbzrle")
    work.wait_for_data()
    for number in range(1, 4):
        work.proxy.cut()
        while work.proxy.connections == number and work.process.poll() is None:
            time.sleep(0.001)
    status, said = work.end()
    assert (status, work.files) == (4, [])
    assert "could not be restored" not in said
    assert settings(vm) == before


def test_qemu_is_killed_half_way(tmp_path: Path) -> None:
    with running(tmp_path) as vm, pytest.MonkeyPatch.context() as patch:
        patch.setattr("qemu_svm.qmp.timeouts.RECONNECT", 0.3)
        timer = threading.Timer(0.2, vm.kill)
        timer.start()
        with pytest.raises(EnvironmentFault, match="could not be restored") as caught:
            take(vm, tmp_path / "dump.bin", SLOW)
        timer.join()
        assert "nobody listens" in str(caught.value)
        assert "max-bandwidth" in str(caught.value.hint)
    assert not (tmp_path / "dump.bin").exists()
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".part")]


def killed(vm: Vm, folder: Path, *options: str) -> Path:
    """A directory in which a capture was killed while it ran."""
    out = folder / "killed"
    out.mkdir()
    command = [PROGRAM, "capture", "--qmp", vm.address, "-o", out / "dump.bin", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not any(path.stat().st_size for path in out.iterdir()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        process.kill()
    with sync.connect(vm.address) as qmp:
        while qmp.migration().active:
            time.sleep(0.01)
    return out


def partial(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".part")]


def test_we_are_killed_half_way(vm: Vm, tmp_path: Path) -> None:
    before = settings(vm)
    out = killed(vm, tmp_path, *LIMIT)
    with sync.connect(vm.address) as qmp:
        assert qmp.status().running
        assert qmp.migration().status == "failed"
        # Settings are what nobody is left to put back, until somebody asks for it.
        assert qmp.parameters()["max-bandwidth"] == 100 << 10
    assert len(partial(out)) == len(os.listdir(out)) == 1
    with pytest.raises(Refused, match=r"was killed .*max-bandwidth was \d+; incomplete") as info:
        take(vm, tmp_path / "dump.bin")
    assert f"doctor --qmp {vm.address} --put-back" in str(info.value.hint)
    assert len(os.listdir(out)) == 1
    told = run_doctor(vm)
    assert told["state"] == "warning"
    assert "max-bandwidth was" in told["found"]
    assert run_doctor(vm, "--put-back")["state"] == "ok"
    assert settings(vm) == before
    assert not os.listdir(out)
    assert run_doctor(vm) == {}
    assert take(vm, tmp_path / "dump.bin").left == ()


def test_we_are_killed_while_the_guest_is_stopped(vm: Vm, tmp_path: Path) -> None:
    before = settings(vm)
    killed(vm, tmp_path, *LIMIT, "--stop")
    with sync.connect(vm.address) as qmp:
        assert qmp.status().state == "paused"
    assert "the guest is paused, it was running" in run_doctor(vm)["found"]
    assert run_doctor(vm, "--put-back")["state"] == "ok"
    assert settings(vm) == before


def test_a_killed_capture_of_a_qemu_that_is_gone(tmp_path: Path) -> None:
    with running(tmp_path) as vm:
        out = killed(vm, tmp_path, *LIMIT, "--stop")
    with running(tmp_path) as vm:
        # Another QEMU at the same address: only the file is left, which is no obstacle.
        done = take(vm, tmp_path / "dump.bin")
        assert [os.path.dirname(path) for path in done.left] == [str(out)]
        assert done.after.running
        # It is not forgotten.
        assert f"incomplete file {done.left[0]}" in run_doctor(vm, "--put-back")["found"]
        assert not partial(out)


def run_doctor(vm: Vm, *more: str) -> dict[str, Any]:
    """The line of ``doctor`` about what was left."""
    command = [PROGRAM, "doctor", "--qmp", vm.address, "--json", *more]
    done = subprocess.run(command, capture_output=True, check=False, timeout=60)
    checks = json.loads(done.stdout)["checks"]
    return next((one for one in checks if one["name"] == "left over"), {})


@pytest.mark.parametrize("options", [(), ("--xbzrle",), ("-f",), ("--stop", "-f", "--xbzrle")])
def test_the_disk_is_full(options: tuple[str, ...], vm: Vm, tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))

    before = settings(vm)
    work = Process(vm, tmp_path, *options, preexec_fn=small, env=UNMEASURED)
    status, said = work.end()
    assert status == 4
    assert said == f"svmstream: cannot write '{work.output}': File too large\n"
    assert work.files == []
    assert settings(vm) == before


@pytest.mark.parametrize("kind", ["device", "file"])
def test_standard_output_is_full(kind: str, vm: Vm, tmp_path: Path) -> None:
    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))

    before = settings(vm)
    target, reason = {
        "device": ("/dev/full", "No space left on device"),
        "file": (str(tmp_path / "out"), "File too large"),
    }[kind]
    with open(target, "wb") as out:
        done = subprocess.run(
            [PROGRAM, "capture", "--qmp", vm.address, "-o", "-"], stdout=out,
            stderr=subprocess.PIPE, check=False, timeout=60, preexec_fn=small, env=UNMEASURED,
        )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.decode() == f"svmstream: cannot write standard output: {reason}\n"
    assert settings(vm) == before


def test_no_space_left() -> None:
    async def work() -> OSError | None:
        full = os.open("/dev/full", os.O_WRONLY)
        receiver = Receiver(lambda _head: full)
        with pair(receiver) as theirs:
            theirs.sendall(b"x" * 100)
            theirs.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(10):
                await receiver.ended.wait()
        await receiver.close()
        os.close(full)
        return receiver.error

    error = asyncio.run(work())
    assert error is not None
    assert error.strerror == "No space left on device"


def test_the_output_exists(vm: Vm, tmp_path: Path, svmstream: Run) -> None:
    path = tmp_path / "dump.bin"
    path.write_bytes(b"mine")
    done = svmstream("capture", "--qmp", vm.socket, "-o", path)
    assert done.returncode == 2
    assert b"exists already; -f replaces it" in done.stderr
    assert path.read_bytes() == b"mine"
    done = svmstream("capture", "--qmp", vm.socket, "-o", path, "-f")
    assert (done.returncode, done.stderr) == (0, b"")
    assert path.read_bytes().startswith(b"QEVM")
    (tmp_path / "other.channel1").touch()
    done = svmstream("capture", "--qmp", vm.socket, "-o", tmp_path / "other", "--multifd", "2")
    assert done.returncode == 2
    assert not (tmp_path / "other").exists()


def test_only_errors_of_ours(vm: Vm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings(vm)
    exists = tmp_path / "exists"
    exists.touch()
    with sync.connect(vm.address) as qmp:
        with pytest.raises(OutputExists) as caught:
            qmp.capture(str(exists))
        assert (caught.value.path, str(caught.value)) == (str(exists), f"'{exists}' exists already")
        for path in (tmp_path, tmp_path / "none" / "x", tmp_path / ("x" * 300), "a\0b", "\ud800"):
            with pytest.raises(EnvironmentFault, match="cannot write"):
                qmp.capture(str(path))
        taken_meanwhile = tmp_path / "meanwhile"
        with pytest.raises(OutputExists):
            qmp.capture(str(taken_meanwhile), progress=lambda _one: taken_meanwhile.touch())
        assert taken_meanwhile.read_bytes() == b""
        with pytest.raises(SvmStreamError):
            qmp.capture(str(tmp_path / "x"), CaptureOptions(multifd=-1))
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(os, "dup", lambda _fd: writer)
        with pytest.raises(OutputClosed):
            qmp.capture("-")
    assert sorted(os.listdir(tmp_path)) == ["exists", "meanwhile"]
    assert settings(vm) == before


def test_no_descriptors_are_left(vm: Vm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_arguments: object, **_more: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    before = settings(vm)
    with sync.connect(vm.address) as qmp:
        for name in ("socket.socketpair", "tempfile.mkdtemp"):
            with monkeypatch.context() as patch:
                patch.setattr(name, none_left)
                with pytest.raises(QmpError, match="Too many open files"):
                    qmp.capture(
                        str(tmp_path / "x"),
                        CaptureOptions(multifd=int(name != "socket.socketpair")),
                    )
        with pytest.raises(QmpError, match="cannot listen"):
            Listener(Receiver.__new__(Receiver), "host..invalid")
    assert os.listdir(tmp_path) == []
    assert settings(vm) == before


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupt_that_comes_too_late_loses_nothing(
    late: bool, vm: Vm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "dump.bin"
    close = Client.close

    tasks: list[asyncio.Task[Captured]] = []

    async def interrupted(client: Client) -> None:
        tasks[0].cancel()
        await asyncio.sleep(0)
        await close(client)

    async def work(**more: Any) -> Captured:
        tasks[:] = [asyncio.ensure_future(capture_stream(vm.address, str(path), **more))]
        return await tasks[0]

    before = settings(vm)
    if late:
        with monkeypatch.context() as patch:
            patch.setattr(Client, "close", interrupted)
            done = asyncio.run(work())
        assert done.files == (str(path),)
        assert min(counters(done)) > 0
    else:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(work(progress=lambda _one: tasks[0].cancel()))
        assert os.listdir(tmp_path) == []
    assert settings(vm) == before


def test_nowhere_to_write(vm: Vm, tmp_path: Path, svmstream: Run) -> None:
    for path in (tmp_path / "no" / "dump.bin", tmp_path):
        done = svmstream("capture", "--qmp", vm.socket, "-o", path, "-f")
        assert done.returncode == 4
        assert b"cannot write" in done.stderr


def test_into_a_pipe(vm: Vm, svmstream: Run) -> None:
    before = settings(vm)
    done = svmstream("capture", "--qmp", vm.socket, "-o", "-")
    assert (done.returncode, done.stderr) == (0, b"")
    read = svmstream("inspect", "-", input=done.stdout)
    assert read.returncode == 0
    assert b"complete" in read.stdout
    assert svmstream("capture", "--qmp", vm.socket, "-o", "-", "--json").returncode == 2
    assert svmstream("capture", "--qmp", vm.socket, "-o", "-", "--multifd", "2").returncode == 5
    assert settings(vm) == before


def test_a_pipe_that_nobody_reads(vm: Vm) -> None:
    before = settings(vm)
    words = [PROGRAM, "capture", "--qmp", vm.socket, "-o", "-"]
    for number, status in ((signal.SIGINT, 130), (None, 141)):
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read(4) == b"QEVM"
            if number is not None:
                process.send_signal(number)
            else:
                process.stdout.close()
            assert process.wait(30) == status
        assert settings(vm) == before


def test_disks_stay_open_however_late_it_is_cancelled(
    tmp_path: Path, qemu_7_2: tuple[str, ...]
) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    disk = (
        *("-blockdev", f"file,node-name=disk,filename={tmp_path}/disk"),
        *("-device", "virtio-blk-pci,drive=disk,share-rw=on"),
    )
    write = {"command-line": 'qemu-io disk "write 0 512"'}
    dice = random.Random(1)

    async def hammer(vm: Vm) -> int:
        cancelled = 0
        async with Client.connect(vm.address) as client:
            for _ in range(60):
                work = asyncio.create_task(
                    capture(client, str(tmp_path / "dump.bin"), replace=True)
                )
                await asyncio.sleep(0.08 * dice.random())
                work.cancel()
                try:
                    await work
                except asyncio.CancelledError:
                    cancelled += 1
                assert await client.execute("human-monitor-command", write) == ""
                assert (await client.status()).running
        return cancelled

    with running(tmp_path, *disk, command=qemu_7_2) as vm:
        assert asyncio.run(hammer(vm)) > 10


# A long series.


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture
def quiet() -> Iterator[None]:
    gc.collect()
    yield
    gc.collect()


def test_a_hundred_in_a_row(vm: Vm, tmp_path: Path, quiet: None) -> None:
    async def series() -> None:
        last = [0] * len(COUNTERS)
        start: tuple[int, ...] = ()
        memory = 0
        async with Client.connect(vm.address) as client:
            for number in range(100):
                options = CaptureOptions(multifd=2) if number % 10 == 5 else CaptureOptions()
                path = str(tmp_path / "dump.bin")
                done = await capture(client, path, options, replace=True)
                found = counters(done)
                assert all(one >= two for one, two in zip(found, last, strict=True))
                assert found > last
                last = found
                now = (
                    open_files(os.getpid()),
                    open_files(vm.process.pid),
                    len(asyncio.all_tasks()),
                    threading.active_count(),
                )
                if number == 20:
                    start, memory = now, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert now[:3] == start[:3]
            assert now[3] <= start[3] + 4  # the loop's pool of threads may still grow
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 8 << 10

    before = settings(vm)
    asyncio.run(series())
    assert settings(vm) == before


# As a user.


def test_text_and_json(vm: Vm, tmp_path: Path, svmstream: Run) -> None:
    done = svmstream("capture", "--qmp", vm.socket, "-o", tmp_path / "a")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"running; was stopped for" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.decode().splitlines()[1:])
    done = svmstream("capture", "--qmp", vm.socket, "-o", tmp_path / "b", "--json")
    made = json.loads(done.stdout)
    assert made["schema_version"] == 1
    assert made["files"] == [str(tmp_path / "b")]
    assert made["guest"]["after"] == {"state": "running", "running": True}
    assert made["migration"]["status"] == "completed"


@pytest.mark.parametrize(
    "wrong",
    [
        ("--compression", "zstd"),
        ("--mapped-ram", "--xbzrle"),
        ("--multifd", "0"),
        ("--bandwidth", "much"),
        ("--background-snapshot", "--stop"),
    ],
)
def test_wrong_arguments(wrong: tuple[str, ...], svmstream: Run, tmp_path: Path) -> None:
    done = svmstream("capture", "--qmp", "/none", "-o", tmp_path / "a", *wrong)
    assert done.returncode == 2
    done = svmstream("capture", "--qmp", "/none", "-o", tmp_path / "a")
    assert done.returncode == 4
    assert b"no such socket" in done.stderr


@pytest.mark.parametrize(("version", "says"), [((7, 2), False), ((9, 0), True)])
def test_a_socket_that_qemu_cannot_reach(version: tuple[int, int], says: bool) -> None:
    client = SimpleNamespace(version=Version(*version))
    capture: Any = SimpleNamespace(_options=CaptureOptions(multifd=2), _client=client)
    refused = _Capture._not_saved(capture, "Failed to connect to '/x': Permission denied")
    assert "leave out --multifd" in str(refused)
    assert ("add --mapped-ram" in str(refused)) is says
