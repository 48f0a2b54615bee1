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
AMD, INTEL, OTHER = 0, 1, 2
BPF, PTRACE = 1, 2
HEADER = struct.Struct("<8sHHIQQI64s64sI")
RECORD = struct.Struct("<IBBHQIIiIQqII")

CALL, RUN, LOST, NO_DATA, DESCRIPTOR, ATTACHED, END = range(1, 8)
LEVELS = ("unknown", "system", "vm", "vcpu", "device")
"""By their number in a record."""

_NANOSECONDS = 1_000_000_000
_DURATION_MOST = (1 << 32) - 1
_BUFFER = 1 << 16


@dataclass
class Record:
    """One record.

    :param time: of the call's entry, in ns of CLOCK_MONOTONIC.
    :param result: what the ioctl returned; a negative errno.
    """

    kind: int
    time: int
    tid: int = 0
    fd: int = -1
    level: int = 0
    index: int = 0
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
            size + padding, self.kind, self.level, self.index & 0xFFFF, self.time,
            min(self.duration, _DURATION_MOST), self.tid, self.fd, self.number, self.argument,
            self.result, len(self.data_in), len(self.data_out),
        )  # fmt: skip
        return head + self.data_in + self.data_out + bytes(padding)

    def line(self) -> bytes | None:
        """The record as a line of JSON; None of what is no call."""
        if self.kind not in (CALL, RUN, NO_DATA):
            return None
        call: dict[str, Any] = {
            "t": self.time,
            "tid": self.tid,
            "fd": self.fd,
            "level": LEVELS[self.level] if self.level else None,
            "index": self.index,
            "nr": f"{self.number:#x}",
            "ret": self.result,
            "in": self.data_in.hex(),
            "out": self.data_out.hex(),
        }
        if self.kind == RUN:
            call["runs"] = self.argument
        elif not self.data_in and not self.data_out:
            call["arg"] = f"{self.argument:#x}"
        return _line(call)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


@dataclass(frozen=True)
class LogHeader:
    """What a log begins with.

    :param recorder: :data:`BPF` or :data:`PTRACE`.
    """

    pid: int
    program: str
    recorder: int

    def packed(self) -> bytes:
        """The header in the binary form."""
        release = os.uname().release.encode()[:63]
        program = os.fsencode(self.program)[-63:]
        now, up = (
            time.clock_gettime_ns(time.CLOCK_REALTIME),
            time.clock_gettime_ns(time.CLOCK_MONOTONIC),
        )
        return HEADER.pack(
            MAGIC, VERSION, 0, self.pid, now, up, vendor(), release, program, self.recorder
        )

    def line(self) -> bytes:
        """The header as a line of JSON."""
        return _line(
            {
                "svmstream-recording": VERSION,
                "vendor": ("amd", "intel", "other")[vendor()],
                "source": f"svmstream record ({('', 'bpf', 'ptrace')[self.recorder]})",
                "pid": self.pid,
                "program": self.program,
                "kernel": os.uname().release,
            }
        )


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
        self._begun = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o600)
        except FileExistsError as error:
            raise OutputExists(path) from error
        except OSError as error:
            raise _not_written(path, error) from error

    def begin(self, header: LogHeader) -> None:
        """Write the header."""
        self._begun = True
        self._put(header.line() if self._lines else header.packed())

    @property
    def has_begun(self) -> bool:
        """Whether there is a header."""
        return self._begun

    def write(self, record: Record) -> None:
        """Add a record; see :meth:`flush`."""
        if self._lines:
            line = record.line()
            if line is not None:
                self._put(line)
        else:
            self._put(record.packed())
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


def vendor() -> int:
    """Return the vendor of the processor: :data:`AMD`, :data:`INTEL` or :data:`OTHER`."""
    try:
        with open("/proc/cpuinfo", errors="replace") as file:
            text = file.read(1 << 12)
    except OSError:
        return OTHER
    return AMD if "AuthenticAMD" in text else INTEL if "GenuineIntel" in text else OTHER
