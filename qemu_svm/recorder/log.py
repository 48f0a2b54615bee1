"""The log that is written: the binary form, or JSON lines.

The layout is declared in :mod:`qemu_svm.recording`, which reads both; tests hold this writer
against it.  Here it is packed by hand, because a host without svmstream has no construct.
A record is written whole, so what precedes the end of a log is always readable.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import time
from dataclasses import dataclass
from typing import Any

from qemu_svm.errors import EnvironmentFault, OutputExists

MAGIC = b"SVMIOCTL"
VERSION = 1
VENDORS = ("amd", "intel", "other")
BPF, PTRACE = 1, 2
RECORDERS = {BPF: "bpf", PTRACE: "ptrace"}
REDACTED, LATE = 1, 2
HEADER = struct.Struct("<8sHHIQQI64s64sI")
RECORD = struct.Struct("<IBBHQIIiIQqII")
RUNS = struct.Struct("<iIQ")

CALL, RUN, LOST, NO_DATA, DESCRIPTOR, ATTACHED, END, MEMORY = range(1, 9)
LEVELS = ("unknown", "system", "vm", "vcpu", "device")
"""By their number in a record."""

NO_INDEX = 0xFFFF
EXITED, STOPPED = 1, 2
"""Why a recording ended: the process did, or the recorder was told to."""

_REASONS = {EXITED: "exited", STOPPED: "stopped"}
_DURATION_MOST = (1 << 32) - 1
_BUFFER = 1 << 16


@dataclass
class Record:
    """One record; :mod:`qemu_svm.recording.structs` describes the members.

    :param time: of the call's entry, in ns of CLOCK_MONOTONIC.
    :param result: what the ioctl returned; a negative errno.
    """

    kind: int
    time: int
    tid: int = 0
    fd: int = -1
    level: int = 0
    index: int = NO_INDEX
    number: int = 0
    argument: int = 0
    result: int = 0
    duration: int = 0
    data_in: bytes = b""
    data_out: bytes = b""

    def packed(self) -> bytes:
        """The record in the binary form."""
        size = RECORD.size + len(self.data_in) + len(self.data_out)
        padding = -size % 8
        head = RECORD.pack(
            size + padding, self.kind, self.level, min(self.index, NO_INDEX), self.time,
            min(self.duration, _DURATION_MOST), self.tid, self.fd, self.number, self.argument,
            self.result, len(self.data_in), len(self.data_out),
        )  # fmt: skip
        return head + self.data_in + self.data_out + bytes(padding)

    def line(self) -> bytes:
        """The record as a line of JSON."""
        if self.kind in (CALL, RUN, NO_DATA):
            return _line(self._call())
        values: dict[str, Any]
        if self.kind == DESCRIPTOR:
            text = self.data_out.decode(errors="backslashreplace")
            values = {"kind": "fd", "fd": self.fd, "text": text}
        elif self.kind == MEMORY:
            address = f"{self.argument:#x}"
            values = {"kind": "memory", "fd": self.fd, "address": address,
                      "data": self.data_in.hex()}  # fmt: skip
        elif self.kind == END:
            rows = [
                dict(zip(("fd", "index", "runs"), one)) for one in RUNS.iter_unpack(self.data_out)
            ]
            values = {"kind": "end", "reason": _REASONS[self.argument], "runs": rows}
        else:
            kind = "lost" if self.kind == LOST else "attached"
            values = {"kind": kind, "count": self.argument}
        return _line({"t": self.time, **values})

    def _call(self) -> dict[str, Any]:
        values: dict[str, Any] = {
            "t": self.time,
            "tid": self.tid,
            "fd": self.fd,
            "level": LEVELS[self.level] if self.level else None,
            "index": None if self.index == NO_INDEX else self.index,
            "nr": f"{self.number:#x}",
            "ret": self.result,
            "in": self.data_in.hex(),
            "out": self.data_out.hex(),
            "duration": self.duration,
        }
        if self.kind == RUN:
            values["runs"] = self.argument
        elif self.argument:
            values["arg"] = f"{self.argument:#x}"
        if self.kind == NO_DATA:
            values["missing"] = True
        return values


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


@dataclass(frozen=True)
class LogHeader:
    """What a log begins with.

    :param recorder: :data:`BPF` or :data:`PTRACE`.
    :param flags: :data:`REDACTED`, :data:`LATE`: the process ran already.
    """

    pid: int
    program: str
    recorder: int
    flags: int = 0

    def packed(self) -> bytes:
        """The header in the binary form."""
        vendor = VENDORS.index(_vendor())
        release = os.uname().release.encode()[:63]
        program = os.fsencode(self.program)[-63:]
        return HEADER.pack(
            MAGIC, VERSION, self.flags, self.pid, *_now(), vendor, release, program, self.recorder
        )

    def line(self) -> bytes:
        """The header as a line of JSON."""
        realtime, monotonic = _now()
        values = {
            "svmstream-recording": VERSION,
            "vendor": _vendor(),
            "pid": self.pid,
            "release": os.uname().release,
            "exe": os.fsencode(self.program).decode(errors="backslashreplace"),
            "recorder": RECORDERS[self.recorder],
            "realtime": realtime,
            "monotonic": monotonic,
            "redacted": bool(self.flags & REDACTED),
            "attached": bool(self.flags & LATE),
        }
        return _line(values)


def _now() -> tuple[int, int]:
    return time.clock_gettime_ns(time.CLOCK_REALTIME), time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class LogFile:
    """A log that is written; nothing is replaced, and only its owner may read it.

    :param path: its name; JSON lines if it ends in ``.jsonl``.
    :raises OutputExists: the file exists.
    :raises EnvironmentFault: it cannot be created.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lines = path.endswith(".jsonl")
        self._buffer: list[bytes] = []
        self._size = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o600)
        except FileExistsError as error:
            raise OutputExists(path) from error
        except OSError as error:
            raise _not_written(path, error) from error

    def begin(self, header: LogHeader) -> None:
        """Write the header."""
        self._put(header.line() if self._lines else header.packed())

    def write(self, record: Record) -> None:
        """Add a record; see :meth:`flush`."""
        self._put(record.line() if self._lines else record.packed())
        if self._size >= _BUFFER:
            self.flush()

    def _put(self, data: bytes) -> None:
        self._buffer.append(data)
        self._size += len(data)

    def flush(self) -> None:
        """Give the system everything that was written: it stays if this process dies.

        :raises EnvironmentFault: it cannot be written.
        """
        data = memoryview(b"".join(self._buffer))
        self._buffer.clear()
        self._size = 0
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            raise _not_written(self.path, error) from error

    def close(self) -> None:
        """Close the file; what was not flushed is dropped."""
        os.close(self._fd)


def _not_written(path: str, error: OSError) -> EnvironmentFault:
    hint = "make room, or choose another file" if error.errno == errno.ENOSPC else None
    return EnvironmentFault(f"cannot write '{path}': {error.strerror}", hint=hint)


def _vendor() -> str:
    try:
        with open("/proc/cpuinfo", errors="replace") as file:
            text = file.read(1 << 12)
    except OSError:
        return "other"
    return "amd" if "AuthenticAMD" in text else "intel" if "GenuineIntel" in text else "other"
