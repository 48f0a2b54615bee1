"""Streams put back into real QEMUs, and what is said when they are not taken."""

from __future__ import annotations

import asyncio
import gzip
import json
import lzma
import os
import shlex
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from qemu_svm.errors import QmpError, Refused, StreamRefused
from qemu_svm.qmp import sync
from qemu_svm.qmp.features import CaptureOptions
from qemu_svm.qmp.process import Process
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.conftest import ROOT, STREAMS, Run
from tests.qmp.test_capture import PROGRAM
from tests.qmp.vm import QEMU, UNMEASURED, Vm, running


@pytest.fixture(scope="module")
def dump(vm: Vm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of the running guest."""
    path = tmp_path_factory.mktemp("dump") / "dump.bin"
    with sync.connect(vm.address) as qmp:
        qmp.capture(str(path))
    return path


def arguments(vm: Vm, *more: str) -> list[str]:
    return ["--qemu", *QEMU, "--", *vm.arguments, *more]


def alive(vm: Vm) -> list[int]:
    """QEMUs with this guest's arguments, but for the guest itself."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if vm.arguments[-1].encode() in words and b"defer" in words:
            found.append(int(pid))
    return found


def test_check(vm: Vm, dump: Path, svmstream: Run) -> None:
    done = svmstream("restore", dump, "--check", *arguments(vm))
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"restored by QEMU" in done.stdout
    assert alive(vm) == []
    done = svmstream("restore", dump, "--check", "--json", *arguments(vm))
    made = json.loads(done.stdout)
    assert made["taken"] is True
    assert made["size"] == dump.stat().st_size
    assert made["guest"]["running"] is False


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstandard.compress])
def test_packed_streams(
    pack: Callable[[bytes], bytes], vm: Vm, dump: Path, tmp_path: Path, svmstream: Run
) -> None:
    packed = pack(dump.read_bytes())
    path = tmp_path / "dump.packed"
    path.write_bytes(packed)
    done = svmstream("restore", path, "--check", *arguments(vm))
    assert (done.returncode, done.stderr) == (0, b"")
    done = svmstream("restore", "-", "--check", *arguments(vm), input=packed)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "options",
    [
        CaptureOptions(multifd=2),
        CaptureOptions(multifd=3, compression="zlib"),
        CaptureOptions(multifd=1, compression="zstd"),
        CaptureOptions(xbzrle=True, bandwidth=4 << 20, stop_after=0.3),
        CaptureOptions(background_snapshot=True),
    ],
)
def test_every_kind_goes_back(options: CaptureOptions, vm: Vm, tmp_path: Path) -> None:
    with sync.connect(vm.address) as qmp:
        taken = qmp.capture(str(tmp_path / "dump.bin"), options)
    with (
        running(tmp_path, "-incoming", "defer", "-S") as waiting,
        sync.connect(waiting.address) as qmp,
    ):
        before = qmp.capabilities(), qmp.parameters()
        channels = [open_source(name) for name in reversed(taken.files[1:])]
        with open_source(taken.files[0]) as source:
            done = qmp.restore(read_stream(source), channels)
        assert done.size == taken.size
        assert done.status.state == "paused"
        assert before == (qmp.capabilities(), qmp.parameters())
        qmp.execute("cont")
        assert qmp.status().running


def test_over_tcp_and_from_a_file_of_qemus(dump: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    extra = ("-incoming", "defer", "-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off")
    with running(tmp_path, *extra), sync.connect(f"127.0.0.1:{port}") as qmp:
        with open_source(str(dump)) as source:
            assert qmp.restore(read_stream(source)).status.running
        with open_source(str(dump)) as source, pytest.raises(Refused, match="does not wait"):
            qmp.restore(read_stream(source))
    with running(tmp_path, *extra[:2]) as vm, sync.connect(vm.address) as qmp:
        with open_source(str(dump)) as source:
            done = qmp.restore(read_stream(source), qemu_file=str(dump))
        assert done.status.running


def test_the_guest_runs_or_not(vm: Vm, dump: Path, tmp_path: Path, svmstream: Run) -> None:
    path = tmp_path / "vm.qmp"
    for option, expected in (([], True), (["--paused"], False)):
        done = svmstream(
            "restore", dump, "--detach", "--socket", path, *option, "--json", *arguments(vm)
        )
        try:
            assert done.returncode == 0, done.stderr
            made = json.loads(done.stdout)
            assert made["qmp"] == f"unix:{path}"
            assert made["guest"]["running"] is expected
            with sync.connect(str(path)) as qmp:
                assert qmp.status().running is expected
        finally:
            for pid in alive(vm):
                os.kill(pid, signal.SIGKILL)
            while alive(vm):
                time.sleep(0.01)


def test_in_the_foreground_until_a_signal(vm: Vm, dump: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [PROGRAM, "restore", dump, *arguments(vm)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert b"restored by" in process.stdout.readline()
        assert len(alive(vm)) == 1
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130
        assert said == b"svmstream: interrupted; QEMU was ended\n"
        assert alive(vm) == []


def test_signals_while_it_loads(vm: Vm, dump: Path) -> None:
    for delay in (0.0, 0.1, 0.2, 0.3):
        process = subprocess.Popen(
            [PROGRAM, "restore", dump, "--check", *arguments(vm)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=UNMEASURED,
        )  # fmt: skip
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and not children.read_text():
            time.sleep(0.01)  # until it has started a QEMU
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode in (0, 130, -signal.SIGINT)
        assert alive(vm) == []


# Refusals, with QEMU's words beside the stream.


def refused(svmstream: Run, *words: str | Path) -> dict[str, Any]:
    done = svmstream("restore", "--check", "--json", *words)
    assert done.returncode == 5, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["taken"] is False
    assert found["reason"]
    return found


def rules(found: dict[str, Any]) -> list[str]:
    return [finding["rule"] for finding in found["findings"]]


def test_another_machine(vm: Vm, dump: Path, svmstream: Run) -> None:
    found = refused(svmstream, dump, *arguments(vm, "-M", "q35"))
    assert rules(found)[0] == "refused-machine"
    assert "pc-i440fx" in found["findings"][0]["message"]


def test_other_memory(vm: Vm, dump: Path, svmstream: Run) -> None:
    found = refused(svmstream, dump, *arguments(vm, "-m", "16"))
    assert rules(found)[0] == "refused-ram-size"
    assert "'pc.ram' has 0x800000 bytes" in found["findings"][0]["message"]


def test_a_device_too_few(vm: Vm, tmp_path: Path, svmstream: Run) -> None:
    with running(tmp_path, "-device", "virtio-rng-pci") as more, sync.connect(more.address) as qmp:
        qmp.capture(str(tmp_path / "dump.bin"))
    found = refused(svmstream, tmp_path / "dump.bin", *arguments(vm))
    assert rules(found) == ["refused-section-unknown"]
    finding = found["findings"][0]
    assert "virtio-rng" in finding["message"]
    with open_source(str(tmp_path / "dump.bin")) as source:
        (record,) = [r for r in read_stream(source).sections() if "rng" in (r.name or "")]
    assert finding["offset"] == record.offset
    text = svmstream("restore", "--check", tmp_path / "dump.bin", *arguments(vm))
    assert text.returncode == 5
    assert b"QEMU says" in text.stdout
    assert f"at {record.payload:#x}".encode() in text.stdout


def changed(dump: Path, path: Path, name: str, offset: int, data: bytes) -> Path:
    """The dump with bytes replaced behind the header of a section."""
    with open_source(str(dump)) as source:
        record = next(r for r in read_stream(source).sections() if r.name == name)
    raw = bytearray(dump.read_bytes())
    at = record.payload + offset
    raw[at : at + len(data)] = data
    path.write_bytes(raw)
    return path


def test_a_version_too_new(vm: Vm, dump: Path, tmp_path: Path, svmstream: Run) -> None:
    path = changed(dump, tmp_path / "d", "mc146818rtc", -4, struct.pack(">I", 99))
    found = refused(svmstream, path, *arguments(vm))
    assert "refused-version" in rules(found)
    assert "section:mc146818rtc, version 99" in found["findings"][0]["message"]


def test_a_field_that_is_not_taken(vm: Vm, dump: Path, tmp_path: Path, svmstream: Run) -> None:
    # PCIBUS.nirq has to be what the destination has.
    path = changed(dump, tmp_path / "d", "PCIBUS", 0, struct.pack(">I", 77))
    found = refused(svmstream, path, *arguments(vm))
    (finding,) = [one for one in found["findings"] if one["rule"] == "refused-field"]
    assert "nirq at 0x" in finding["message"]
    assert " is 77" in finding["message"]


def test_a_cut_stream(vm: Vm, dump: Path, tmp_path: Path, svmstream: Run) -> None:
    path = tmp_path / "cut"
    path.write_bytes(dump.read_bytes()[:300_000])
    found = refused(svmstream, path, *arguments(vm))
    assert "refused-section" in rules(found)
    assert "refused-damage" in rules(found)


def test_what_a_stream_needs(
    vm: Vm, qemu_7_2: tuple[str, ...], tmp_path: Path, svmstream: Run
) -> None:
    binary = tmp_path / "qemu"
    binary.write_text(f'#!/bin/sh\nexec {shlex.join(qemu_7_2)} "$@"\n')
    binary.chmod(0o755)
    words = ["--qemu", str(binary), "--", *vm.arguments, "-m", "16"]
    compressed = STREAMS / "kinds" / "qemu7.2-compress.mig.zst"
    found = refused(svmstream, compressed, *words)
    assert "refused-compressed" in rules(found)
    done = svmstream("restore", "--check", "--capability", "compress", compressed, *words)
    assert done.returncode == 0
    mapped = STREAMS / "kinds" / "qemu10.0-mapped-ram.mig.zst"
    done = svmstream("restore", "--check", mapped, *words)
    assert done.returncode == 5
    assert b"lacks mapped-ram, which the stream needs" in done.stderr


def test_channels_that_are_not_all_there(vm: Vm, tmp_path: Path, svmstream: Run) -> None:
    with sync.connect(vm.address) as qmp:
        done = qmp.capture(str(tmp_path / "d"), CaptureOptions(multifd=2))
    for chosen in ([2], [1, 1]):
        words = [word for index in chosen for word in ("--channel", done.files[index])]
        back = svmstream("restore", "--check", done.files[0], *words, *arguments(vm))
        assert back.returncode == 5
        assert b"each one from 0 up is needed once" in back.stderr
    back = svmstream(
        "restore", "--check", done.files[0], "--channel", done.files[0], *arguments(vm)
    )
    assert back.returncode == 3
    assert b"is not a multifd channel" in back.stderr


def test_a_qemu_that_waits_and_ends(dump: Path, tmp_path: Path, qemu_7_2: tuple[str, ...]) -> None:
    extra = ("-incoming", "defer", "-M", "q35")
    with running(tmp_path, *extra, command=qemu_7_2) as vm, sync.connect(vm.address) as qmp:
        with open_source(str(dump)) as source, pytest.raises(StreamRefused) as caught:
            qmp.restore(read_stream(source))
        assert caught.value.reason == ""
        assert "own log" in str(caught.value)
        assert isinstance(caught.value.__cause__, QmpError)
        assert "Machine type received" in vm.log.read_text()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--check"], 2, b"either --qemu BINARY or --qmp SOCKET"),
        (["--detach", "--qemu", "x"], 2, b"--socket"),
        (["--qmp", "/none"], 4, b"no such socket"),
        (["--check", "--qemu", "/none"], 4, b"no such program"),
        (["--check", "--qemu", "qemu-system-x86_64", "--", "-nonsense"], 5, b"did not start"),
        (["--check", "--qemu", "qemu-system-x86_64", "--", "-incoming", "x"], 5, b"leave it out"),
        (["--check", "--qemu", "true"], 5, b"did not start"),
    ],
)
def test_wrong_words(words: list[str], status: int, said: bytes, svmstream: Run) -> None:
    dump = STREAMS / "qemu7.2-linux6.1-nested.mig.zst"
    done = svmstream("restore", dump, *words, cwd=ROOT)
    assert done.returncode == status
    assert said in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_process_that_is_no_qemu_is_ended(tmp_path: Path) -> None:
    script = tmp_path / "fake"
    script.write_text("#!/bin/sh\ntrap '' TERM\nsleep 100 & wait; wait\n")
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qemu_svm.qmp.timeouts.START", 0.2)
        patch.setattr("qemu_svm.qmp.timeouts.QUIT", 0.2)
        process = Process.start(str(script), [])
        try:
            with pytest.raises(QmpError, match="no such socket"):
                asyncio.run(process.connect())
        finally:
            process.end()
    assert not Path(f"/proc/{process.pid}").exists()
