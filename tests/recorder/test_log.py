"""What the recorder writes is what the readers of recordings read, in both forms."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from qemu_svm.errors import EnvironmentFault, OutputExists
from qemu_svm.kvm.numbers import Level
from qemu_svm.recorder import log
from qemu_svm.recorder.calls import Calls
from qemu_svm.recorder.events import Entered, Left
from qemu_svm.recorder.log import LogFile, LogHeader, Record
from qemu_svm.recorder.process import Process, find
from qemu_svm.recorder.redact import redacted
from qemu_svm.recorder.shapes import CHECK_EXTENSION, shapes
from qemu_svm.recording import payload, records, structs
from qemu_svm.recording.recording import read_recording
from qemu_svm.source import open_source

RUN, SET_REGS, CREATE_VCPU, GET_VERSION = 0xAE80, 0x4090AE82, 0xAE41, 0xAE00
EVERY = [
    Record(log.ATTACHED, 1, argument=2),
    Record(log.DESCRIPTOR, 2, fd=5, data_out=b"anon_inode:kvm-vcpu:1"),
    Record(log.CALL, 3, 77, 5, 3, 1, SET_REGS, 0x7FFF_0000_0000, -22, 1 << 40, b"\x01" * 144),
    Record(log.RUN, 4, 78, 5, 3, 1, RUN, 12, 0, 5, b"", b"\x05\0\0\0"),
    Record(log.NO_DATA, 5, 79, -1, 0, log.NO_INDEX, SET_REGS, 8, -14),
    Record(log.LOST, 6, argument=3),
    Record(log.MEMORY, 7, fd=4, argument=0x1000, data_in=b"\x02" * 4096),
    Record(log.END, 8, argument=log.STOPPED, data_out=log.RUNS.pack(5, 1, 99)),
]


def test_the_layouts_are_the_same() -> None:
    assert log.HEADER.size == structs.HEADER.sizeof() == 168
    assert log.RECORD.size == structs.RECORD.sizeof() == 56
    assert log.RUNS.size == structs.RUNS.sizeof()
    assert (log.MAGIC, log.VERSION) == (structs.MAGIC, structs.VERSION)
    kinds = ("CALL", "RUN", "LOST", "NO_DATA", "DESCRIPTOR", "ATTACHED", "END", "MEMORY")
    assert [getattr(log, name) for name in kinds] == list(structs.Kind)
    assert log.LEVELS[1:] == structs.LEVELS[1:]
    assert log.VENDORS == structs.VENDORS


@pytest.mark.parametrize("suffix", [".rec", ".jsonl"])
def test_written_and_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"log{suffix}"
    file = LogFile(str(path))
    file.begin(LogHeader(4711, "/usr/bin/vmm", log.BPF, log.LATE))
    for one in EVERY:
        file.write(one)
    file.flush()
    file.close()
    with pytest.raises(OutputExists):
        LogFile(str(path))
    with open_source(str(path)) as source:
        recording = read_recording(source)
        found = list(recording)
    assert recording.damage is None
    header = recording.header
    assert (header.pid, header.recorder, header.attached) == (4711, "bpf", True)
    assert (header.exe, header.release, header.redacted) == (
        "/usr/bin/vmm", os.uname().release, False,
    )  # fmt: skip
    assert header.realtime > header.monotonic > 0
    attached, descriptor, call, run, missing, lost, memory, ended = found
    assert isinstance(attached, records.Attached)
    assert attached.count == 2
    assert isinstance(descriptor, records.Descriptor)
    assert descriptor.kind == (Level.VCPU, 1)
    assert isinstance(call, records.Ioctl)
    assert (call.tid, call.fd, call.level, call.index, call.ret) == (77, 5, Level.VCPU, 1, -22)
    assert (call.given, call.returned, call.runs) == (b"\x01" * 144, b"", None)
    assert isinstance(run, records.Ioctl)
    assert (run.exit_reason, run.runs, run.duration) == (5, 12, 5)
    assert isinstance(missing, records.Ioctl)
    assert (missing.missing, missing.level, missing.index, missing.arg) == (
        True,
        Level.VCPU,
        None,
        8,
    )
    assert isinstance(lost, records.Lost)
    assert lost.count == 3
    assert isinstance(memory, records.Memory)
    assert (memory.fd, memory.address, memory.data) == (4, 0x1000, b"\x02" * 4096)
    assert isinstance(ended, records.Ended)
    assert (ended.reason, ended.runs) == ("stopped", (records.Runs(5, 1, 99),))


def test_every_list_has_the_length_that_readers_expect() -> None:
    ours = shapes()
    for number, known in payload.LENGTHS.items():
        shape = ours[number]
        assert known.entry in (shape.each_in, shape.each_out)
        assert (known.base, known.count) == (shape.base, shape.count_at)
    for number in payload.INPUT:
        assert ours[number].size_in
        assert not ours[number].size_out


def test_nothing_is_written_to_a_full_disk() -> None:
    file = LogFile.__new__(LogFile)
    for name, value in (("path", "/dev/full"), ("_lines", False), ("_buffer", []), ("_size", 0)):
        setattr(file, name, value)
    file._fd = os.open("/dev/full", os.O_WRONLY)
    file.write(EVERY[0])
    with pytest.raises(EnvironmentFault, match=r"No space left.*make room"):
        file.flush()
    file.close()


def made() -> tuple[Calls, list[Record]]:
    """Calls of this process, and where their records go."""
    written: list[Record] = []
    return Calls(find(os.getpid()), written.append, ram=False), written


def entered(tid: int, time: int, number: int, fd: int = 900, argument: int = 0) -> Entered:
    return Entered(1, tid, time, number, fd, argument, b"")


def left(tid: int, time: int, number: int, fd: int = 900, result: int = 0) -> Left:
    return Left(1, tid, time, number, fd, 0, result, b"")


def test_records_are_in_the_order_of_entries() -> None:
    calls, written = made()
    calls.enter(entered(1, 10, RUN))
    calls.enter(entered(2, 20, GET_VERSION, 901))
    calls.leave(left(2, 30, GET_VERSION, 901))
    assert written == []
    calls.leave(left(1, 40, RUN))
    assert [(one.kind, one.time) for one in written] == [(log.RUN, 10), (log.CALL, 20)]


def test_a_vcpu_that_runs_long_holds_nothing_up() -> None:
    calls, written = made()
    calls.enter(entered(1, 0, RUN))
    calls.enter(entered(2, 20, GET_VERSION, 901))
    calls.leave(left(2, 30, GET_VERSION, 901))
    calls.tick(10**9)
    assert [(one.kind, one.time) for one in written] == [(log.RUN, 0), (log.CALL, 20)]
    calls.leave(left(1, 2 * 10**9, RUN))
    calls.end(log.EXITED, {}, 3 * 10**9)
    assert [one.kind for one in written] == [log.RUN, log.CALL, log.END]
    assert calls.calls == 2


def test_a_call_whose_other_half_was_lost() -> None:
    calls, written = made()
    calls.enter(entered(1, 10, GET_VERSION, 901))
    calls.enter(entered(1, 20, SET_REGS))  # the exit of the first one was lost
    calls.leave(left(1, 30, SET_REGS))
    calls.leave(left(1, 40, SET_REGS, 902))  # its entry was
    calls.lose(2, 50)
    calls.end(log.EXITED, {900: 7}, 60)
    assert [(one.kind, one.time) for one in written] == [
        (log.CALL, 20), (log.NO_DATA, 40), (log.LOST, 50), (log.END, 60),
    ]  # fmt: skip
    assert written[-1].data_out == log.RUNS.pack(900, log.NO_INDEX, 7)


def test_a_descriptor_that_is_used_again_gets_its_new_level() -> None:
    calls, written = made()
    calls.enter(entered(1, 10, CREATE_VCPU, 901, 3))
    calls.leave(Left(1, 1, 11, CREATE_VCPU, 901, 3, 900, b""))
    for number, fd in ((SET_REGS, 900), (CREATE_VCPU, 900)):
        calls.enter(entered(1, 20, number, fd))
        calls.leave(left(1, 21, number, fd, -1))
    assert [(one.level, one.index) for one in written] == [
        (2, log.NO_INDEX), (3, 3), (2, log.NO_INDEX),
    ]  # fmt: skip
    assert (calls.vms, calls.vcpus) == (2, 1)


def test_a_descriptor_that_was_opened_since_the_call_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its link is read after the call: KVM_CHECK_EXTENSION never succeeds on a vCPU."""
    calls, written = made()
    monkeypatch.setattr(Process, "link", lambda _self, _fd: "anon_inode:kvm-vcpu:0")
    for result, level, vcpus in ((1, 0, 0), (-22, 3, 1)):
        written.clear()
        calls.enter(entered(1, 20, CHECK_EXTENSION))
        calls.leave(left(1, 21, CHECK_EXTENSION, result=result))
        assert (written[-1].level, calls.vcpus) == (level, vcpus)
        assert len(written) == 1 + vcpus  # the descriptor's record


def test_uninitialised_bytes_are_left_out() -> None:
    sregs2 = Record(
        log.CALL, 1, number=0x4140AECD, data_in=b"\xff" * 0x118 + bytes(8) + b"\xee" * 32
    )
    assert redacted(sregs2).data_in == b"\xff" * 0x118 + bytes(40)
    valid = Record(log.CALL, 1, number=0x4140AECD, data_in=b"\xff" * 0x140)
    assert redacted(valid) == valid
    number = Record(log.CALL, 1, number=0xAE03, argument=208)
    assert redacted(number) == number
    assert {one.name for one in fields(Record)} >= {"data_in", "data_out", "argument"}


def test_the_file_runs_with_the_oldest_python_in_the_box() -> None:
    """Its modules compile as Python 3.9, without anything of svmstream or another package."""
    import ast

    from qemu_svm.recorder.probe import program

    text = program()
    ast.parse(text, feature_version=(3, 9))
    for line in text.splitlines():
        assert "typing_extensions" not in line or "TYPE_CHECKING" in line, line
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-", "--help"],
        input=text.encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert b"--pid PID | -- COMMAND" in done.stdout
