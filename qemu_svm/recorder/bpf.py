"""bpf(2): maps, programs, raw tracepoints, the ring buffer.

Nothing is pinned: maps, programs and links end with their file descriptors, so with the
process, however it ends.

Source: Linux ``include/uapi/linux/bpf.h``, ``kernel/bpf/syscall.c``, ``ringbuf.c``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
import resource
import struct
from collections.abc import Iterator

from qemu_svm.errors import EnvironmentFault
from qemu_svm.recorder.assembler import Program

_SYS_BPF = 321
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE, _MAP_NEXT, _PROG_LOAD = range(6)
_RAW_TRACEPOINT_OPEN = 17
HASH, ARRAY, PERCPU_ARRAY, RINGBUF = 1, 2, 6, 27
_RAW_TRACEPOINT = 17
_LICENSE = b"Dual MIT/GPL\0"
_LOG_SIZE = 1 << 22
_BUSY, _DISCARDED, _LENGTH = 1 << 31, 1 << 30, (1 << 30) - 1
_MESSAGE_HEADER = 8
_FAILED_AT = re.compile(r"^(\d+): \(", re.MULTILINE)

_libc = ctypes.CDLL(None, use_errno=True)


class BpfError(EnvironmentFault):
    """The kernel refuses BPF; the hint says what may help."""

    rule = "bpf"


def _bpf(command: int, attributes: bytes, what: str) -> int:
    buffer = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    result = int(_libc.syscall(_SYS_BPF, command, buffer, len(attributes)))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _address(data: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(data)


class Map:
    """A map; keys and values are bytes."""

    def __init__(self, kind: int, key: int, value: int, entries: int, name: str) -> None:
        self.name = name
        self._sizes = (key, value)
        attributes = struct.pack("<5IIIi16s", kind, key, value, entries, 0, 0, 0, 0, name.encode())
        self.fd = _bpf(_MAP_CREATE, attributes[:44], f"map {name}")

    def _element(self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None) -> bool:
        place = ctypes.create_string_buffer(key, len(key))
        attributes = struct.pack(
            "<IIQQQ", self.fd, 0, _address(place), 0 if value is None else _address(value), 0
        )
        try:
            _bpf(command, attributes, f"map {self.name}")
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def get(self, key: bytes) -> bytes | None:
        """Return a value; None if there is none."""
        value = ctypes.create_string_buffer(self._sizes[1])
        return value.raw if self._element(_MAP_LOOKUP, key, value) else None

    def put(self, key: bytes, value: bytes) -> None:
        """Enter a value.

        :raises OSError: the map is full.
        """
        self._element(_MAP_UPDATE, key, ctypes.create_string_buffer(value, len(value)))

    def remove(self, key: bytes) -> None:
        """Remove a key, if it is there."""
        self._element(_MAP_DELETE, key, None)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over keys and values."""
        key: bytes | None = None
        while True:
            following = ctypes.create_string_buffer(self._sizes[0])
            before = None if key is None else ctypes.create_string_buffer(key, len(key))
            attributes = struct.pack(
                "<IIQQ", self.fd, 0, 0 if before is None else _address(before), _address(following)
            )
            try:
                _bpf(_MAP_NEXT, attributes, f"map {self.name}")
            except OSError:
                return
            key = following.raw
            value = self.get(key)
            if value is not None:
                yield key, value

    def close(self) -> None:
        """Release the map."""
        os.close(self.fd)


def make_map(kind: int, key: int, value: int, entries: int, name: str) -> Map:
    """Create a map; before Linux 5.11 its memory counts against RLIMIT_MEMLOCK, which is raised.

    :raises BpfError: the kernel refuses; the hint says what may help.
    """
    try:
        try:
            return Map(kind, key, value, entries, name)
        except PermissionError:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
            return Map(kind, key, value, entries, name)
    except OSError as error:
        if kind == RINGBUF and error.errno == errno.EINVAL:
            release = os.uname().release
            raise BpfError(
                f"the kernel has no ring buffer for eBPF (this is Linux {release})",
                hint="needs Linux 5.8 or later; use --how ptrace",
            ) from error
        raise _refused(error) from error


def _refused(error: OSError) -> BpfError:
    # What a failure of bpf(2) means.
    if error.errno == errno.EPERM:
        hint = "needs root, or CAP_BPF and CAP_PERFMON"
        if os.geteuid() == 0:
            hint = (
                "the container's seccomp profile or capabilities forbid bpf(2): record on the host"
            )
        return BpfError("eBPF is not permitted", hint=hint)
    if error.errno == errno.ENOSYS:
        return BpfError(
            "the kernel has no eBPF", hint="CONFIG_BPF_SYSCALL is off; use --how ptrace"
        )
    return BpfError(f"eBPF: {error.strerror}", hint="use --how ptrace")


def load(program: Program, name: str) -> int:
    """Load a program for raw tracepoints; return its file descriptor.

    :raises BpfError: the kernel refuses; a rejection by the verifier names the instruction.
    """
    code = ctypes.create_string_buffer(program.code, len(program.code))
    license_text = ctypes.create_string_buffer(_LICENSE)

    def attempt(log: ctypes.Array[ctypes.c_char] | None) -> int:
        attributes = struct.pack(
            "<IIQQIIQII16s", _RAW_TRACEPOINT, len(program.lines), _address(code),
            _address(license_text), 0 if log is None else 1, 0 if log is None else len(log),
            0 if log is None else _address(log), 0, 0, name.encode(),
        )  # fmt: skip
        return _bpf(_PROG_LOAD, attributes, name)

    try:
        return attempt(None)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES, errno.E2BIG, errno.EFAULT):
            raise _refused(error) from error
    log = ctypes.create_string_buffer(_LOG_SIZE)
    try:
        return attempt(log)
    except OSError as error:
        raise _rejected(error, program, name, log.value.decode(errors="replace")) from error


def _rejected(error: OSError, program: Program, name: str, log: str) -> BpfError:
    # The verifier's last words, and the instruction that they are about.
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("processed ", "verification time"))]
    words = said[-1] if said else str(error)
    unknown = re.search(r"unknown func \w+|invalid func \w+|program of this type cannot use", words)
    if unknown:
        lockdown = locked_down()
        hint = (
            "the kernel is locked down (confidentiality)" if lockdown == "confidentiality"
            else "needs Linux 5.8 or later"
        )  # fmt: skip
        return BpfError(f"the kernel lacks a function of eBPF: {words}", hint=hint)
    places = [int(found) for found in _FAILED_AT.findall(log)]
    where = ""
    if places and places[-1] < len(program.lines):
        where = f" at instruction {places[-1]}, '{program.lines[places[-1]]}'"
    return BpfError(
        f"the kernel's verifier rejects the program '{name}'{where}: {words}",
        hint="use --how ptrace, and report this with the kernel's version",
    )


def locked_down() -> str:
    """Return the kernel's lockdown: ``none``, ``integrity`` or ``confidentiality``."""
    try:
        with open("/sys/kernel/security/lockdown") as file:
            found = re.search(r"\[(\w+)\]", file.read())
    except OSError:
        return "none"
    return found[1] if found else "none"


def attach(program: int, tracepoint: str) -> int:
    """Attach a program to a raw tracepoint until the returned descriptor is closed.

    :raises BpfError: the kernel refuses.
    """
    name = ctypes.create_string_buffer(tracepoint.encode())
    try:
        return _bpf(_RAW_TRACEPOINT_OPEN, struct.pack("<QI", _address(name), program), tracepoint)
    except OSError as error:
        if error.errno == errno.ENOENT:
            hint = "CONFIG_FTRACE_SYSCALLS is off; use --how ptrace"
            raise BpfError(f"the kernel has no tracepoint {tracepoint}", hint=hint) from error
        raise _refused(error) from error


class Ring:
    """The reader's end of a ring buffer.

    :param fd: of the map.
    :param size: of the buffer in bytes: a power of two.
    """

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self._size = size
        self._consumer = mmap.mmap(fd, page)
        # The data are mapped twice in a row, so that no message is split.
        self._data = mmap.mmap(fd, page + 2 * size, prot=mmap.PROT_READ, offset=page)
        self._taken = memoryview(self._consumer)[:8].cast("Q")
        self._made = memoryview(self._data)[:8].cast("Q")
        self._bytes = memoryview(self._data)[page:]

    def messages(self) -> Iterator[memoryview]:
        """Iterate over the messages that are complete now; each is valid until the next."""
        place, end = self._taken[0], self._made[0]
        while place < end:
            start = place & (self._size - 1)
            (word,) = self._bytes[start : start + 4].cast("I")
            if word & _BUSY:
                return
            length = word & _LENGTH
            if not word & _DISCARDED:
                yield self._bytes[start + _MESSAGE_HEADER : start + _MESSAGE_HEADER + length]
            place += (length + _MESSAGE_HEADER + 7) & ~7
            self._taken[0] = place

    def close(self) -> None:
        """Unmap the buffer."""
        for view in (self._taken, self._made, self._bytes):
            view.release()
        self._consumer.close()
        self._data.close()
