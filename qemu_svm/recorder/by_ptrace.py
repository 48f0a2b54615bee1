"""Recording by ptrace, where eBPF is not permitted.

A command is started with a seccomp filter, so that only ioctls of KVM stop it, and KVM_RUN does
not.  The filter cannot be removed and makes these ioctls fail once nobody traces: the command is
killed if its tracer ends before it (PTRACE_O_EXITKILL).  A process that runs already is given no
filter: each of its system calls stops, and it continues whatever becomes of the tracer.

Source: ptrace(2), seccomp(2); Linux ``include/uapi/linux/ptrace.h``, ``kernel/entry/common.c``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from qemu_svm.errors import EnvironmentFault
from qemu_svm.kvm.numbers import Level, by_number, is_kvm
from qemu_svm.recorder.events import Ended, Entered, Event, Left, Source, Started
from qemu_svm.recorder.process import Process, find, read_memory
from qemu_svm.recorder.shapes import (
    CAP_XSAVE2,
    CHECK_EXTENSION,
    KVM_RUN,
    XSAVE_SIZE,
    Read,
    data_in,
    data_out,
)

_CONT, _SYSCALL, _DETACH = 7, 24, 17
_GETEVENTMSG, _SEIZE, _INTERRUPT, _LISTEN = 0x4201, 0x4206, 0x4207, 0x4208
_GET_SYSCALL_INFO = 0x420E
_SYSGOOD, _FORK, _VFORK, _CLONE, _EXEC, _SECCOMP = (1 << n for n in (0, 1, 2, 3, 4, 7))
_EXITKILL = 1 << 20
_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE, _EVENT_EXEC, _EVENT_SECCOMP, _EVENT_STOP = (
    1,
    2,
    3,
    4,
    7,
    128,
)
_SYSCALL_STOP = signal.SIGTRAP | 0x80
_OP_ENTRY, _OP_EXIT, _OP_SECCOMP = 1, 2, 3
_ENTRY = struct.Struct("<B23x7Q")  # op; nr and arguments, at 24
_EXIT = struct.Struct("<B23xq")
_INFO_SIZE = 88
_WALL = 0x40000000
_STOPS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_IOCTL = 16
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER_MODE = 22, 38, 2
_UNTIL_RUN = 1000
_DETACH_SECONDS = 5.0
_POLL_SECONDS = 0.005
_ATTACH_ROUNDS = 100
_EXIT_REASON = 8

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> int:
    result = int(_libc.ptrace(request, tid, address, data))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


@dataclass
class _Thread:
    # A thread that is traced; `steps`: its system calls are watched so long, for its KVM_RUN.
    tid: int
    pid: int
    entry: Entered | None = None
    steps: int = 0


@dataclass
class _Descriptor:
    # See programs.DESCRIPTOR.
    changed: bool = True
    runs: int = 0
    mapping: int | None = None


@dataclass
class _Space:
    # What is known of a process.
    process: Process
    descriptors: dict[int, _Descriptor] = field(default_factory=dict)


class PtraceSource(Source):
    """See :class:`Source`.  All of its methods must be called by one thread.

    :param wake: a descriptor that becomes readable when a signal came, SIGCHLD too.
    """

    def __init__(self, wake: int) -> None:
        self._threads: dict[int, _Thread] = {}
        self._spaces: dict[int, _Space] = {}
        self._xsave = XSAVE_SIZE
        self._every_call = False
        self._poll = select.poll()
        self._poll.register(wake, select.POLLIN)
        self._info = ctypes.create_string_buffer(_INFO_SIZE)

    def watch(self, process: Process, *, children: bool, late: bool) -> None:
        """See :meth:`Source.watch`.

        :raises EnvironmentFault: the process may not be traced.
        """
        self._every_call = late
        options = _SYSGOOD | _CLONE | _EXEC
        if children:
            options |= _FORK | _VFORK
        if not late:
            options |= _SECCOMP | _EXITKILL
        self._spaces[process.pid] = _Space(process)
        try:
            if late:
                self._attach(process, options)
            else:
                self._seize(process, process.pid, options)
        except BaseException:
            self.close()
            raise

    def _attach(self, process: Process, options: int) -> None:
        # Threads may start others meanwhile, which are traced already if it was by a traced one.
        for _round in range(_ATTACH_ROUNDS):
            new = [tid for tid in process.threads() if tid not in self._threads]
            if not new:
                return
            for tid in new:
                with suppress(ProcessLookupError):
                    self._seize(process, tid, options)
                    _ptrace(_INTERRUPT, tid)

    def _seize(self, process: Process, tid: int, options: int) -> None:
        try:
            _ptrace(_SEIZE, tid, 0, options)
        except ProcessLookupError:
            raise
        except OSError as error:
            tracer = _tracer(tid)
            if tracer and tid in process.threads() and tracer == os.getpid():
                return  # a thread that a traced one has started
            raise _not_traced(process, tracer, error) from error
        self._threads[tid] = _Thread(tid, process.pid)

    def wait(self, seconds: float) -> Iterable[Event]:
        """See :meth:`Source.wait`."""
        first = self._next()
        if first is None:
            self._poll.poll(seconds * 1000)
            first = self._next()
        return self._events(first, time.monotonic() + seconds)

    def _next(self) -> tuple[int, int] | None:
        try:
            tid, status = os.waitpid(-1, os.WNOHANG | _WALL)
        except ChildProcessError:
            return None
        return (tid, status) if tid else None

    def _events(self, stop: tuple[int, int] | None, until: float) -> Iterator[Event]:
        while stop is not None:
            tid, status = stop
            if os.WIFSTOPPED(status):
                yield from self._stopped(tid, status)
            else:
                yield from self._ended(tid, status)
            stop = self._next() if time.monotonic() < until else None

    def _ended(self, tid: int, status: int) -> Iterator[Event]:
        thread = self._threads.pop(tid, None)
        if thread is None or thread.pid != tid:
            return
        self._spaces.pop(tid, None)
        yield Ended(tid, status)

    def _stopped(self, tid: int, status: int) -> Iterator[Event]:
        number, event = status >> 8 & 0xFF, status >> 16
        thread = self._threads.get(tid) or self._new_thread(tid)
        passed = 0
        if number == _SYSCALL_STOP or event == _EVENT_SECCOMP:
            yield from self._system_call(thread)
        elif event in (_EVENT_FORK, _EVENT_VFORK, _EVENT_CLONE):
            yield from self._started(thread)
        elif event == _EVENT_EXEC:
            self._executed(thread)
        elif event == _EVENT_STOP:
            if number in _STOPS:
                self._resume(_LISTEN, tid)
                return
        elif not event:
            passed = number
        watched = self._every_call or thread.entry is not None or thread.steps > 0
        self._resume(_SYSCALL if watched else _CONT, tid, passed)

    def _resume(self, request: int, tid: int, number: int = 0) -> None:
        try:
            _ptrace(request, tid, 0, number)
        except ProcessLookupError:
            return  # it was killed; waitpid reports that

    def _new_thread(self, tid: int) -> _Thread:
        pid = _tgid(tid)
        thread = self._threads[tid] = _Thread(tid, pid)
        if pid not in self._spaces:
            self._spaces[pid] = _Space(find(pid))
        return thread

    def _started(self, thread: _Thread) -> Iterator[Event]:
        message = ctypes.c_ulong()
        try:
            _ptrace(_GETEVENTMSG, thread.tid, 0, ctypes.addressof(message))
        except ProcessLookupError:
            return
        pid = message.value
        if _tgid(pid) == pid and pid != thread.pid:
            yield Started(pid)

    def _executed(self, thread: _Thread) -> None:
        # The other threads are gone; the thread has the number of the process.
        for tid in [one.tid for one in self._threads.values() if one.pid == thread.pid]:
            if tid != thread.tid:
                del self._threads[tid]
        thread.entry, thread.steps = None, 0
        if thread.pid in self._spaces:
            self._spaces[thread.pid].descriptors.clear()

    def _system_call(self, thread: _Thread) -> Iterator[Event]:
        now = time.monotonic_ns()
        try:
            _ptrace(_GET_SYSCALL_INFO, thread.tid, _INFO_SIZE, ctypes.addressof(self._info))
        except ProcessLookupError:
            return
        info = self._info.raw
        if info[0] == _OP_EXIT:
            yield from self._exit(thread, _EXIT.unpack_from(info)[1], now)
        elif info[0] in (_OP_ENTRY, _OP_SECCOMP) and thread.entry is None:
            thread.steps = max(thread.steps - 1, 0)
            _op, call, fd, number, argument, *_others = _ENTRY.unpack_from(info)
            number &= 0xFFFF_FFFF
            if call == _IOCTL and is_kvm(number):
                yield from self._entry(thread, number, _signed(fd), argument, now)

    def _entry(
        self, thread: _Thread, number: int, fd: int, argument: int, now: int
    ) -> Iterator[Event]:
        space = self._spaces[thread.pid]
        descriptor = space.descriptors.setdefault(fd, _Descriptor())
        data: bytes | None = b""
        runs = descriptor.runs
        if number == KVM_RUN:
            thread.steps = 0
            descriptor.runs += 1
            if not descriptor.changed:
                return
            descriptor.changed = False
        else:
            descriptor.changed = True
            data = data_in(number, argument, self._reader(thread), self._xsave)
        thread.entry = Entered(thread.pid, thread.tid, now, number, fd, argument, data, runs)
        yield thread.entry

    def _exit(self, thread: _Thread, result: int, now: int) -> Iterator[Event]:
        entry, thread.entry = thread.entry, None
        if entry is None:
            return
        data: bytes | None
        if entry.number == KVM_RUN:
            data = self._exit_reason(thread, entry.fd)
        else:
            read = self._reader(thread)
            data = data_out(entry.number, entry.argument, result, read, self._xsave)
            ioctl = by_number(entry.number)
            if not self._every_call and ioctl is not None and Level.VCPU in ioctl.levels:
                thread.steps = _UNTIL_RUN
        if entry.number == CHECK_EXTENSION and entry.argument == CAP_XSAVE2:
            self._xsave = max(result, XSAVE_SIZE)
        yield Left(entry.pid, entry.tid, now, entry.number, entry.fd, entry.argument, result, data)

    def _exit_reason(self, thread: _Thread, fd: int) -> bytes:
        space = self._spaces[thread.pid]
        descriptor = space.descriptors[fd]
        if descriptor.mapping is None:
            descriptor.mapping = space.process.run_mappings().get(fd, 0)
        if not descriptor.mapping:
            return b""
        return self._reader(thread)(descriptor.mapping + _EXIT_REASON, 8) or b""

    def _reader(self, thread: _Thread) -> Read:
        return lambda address, size: read_memory(thread.tid, address, size)

    def adopt(self, process: Process) -> None:
        """See :meth:`Source.adopt`."""
        self._spaces.setdefault(process.pid, _Space(process))

    def forget(self, pid: int) -> None:
        """See :meth:`Source.forget`."""
        self._spaces.pop(pid, None)

    def runs(self, pid: int) -> dict[int, int]:
        """See :meth:`Source.runs`; behind a filter KVM_RUN is not counted."""
        space = self._spaces.get(pid)
        if space is None or not self._every_call:
            return {}
        return {fd: one.runs for fd, one in space.descriptors.items() if one.runs}

    def stop(self) -> Iterable[Event]:
        """See :meth:`Source.stop`."""
        self.close()
        return ()

    def close(self) -> None:
        """See :meth:`Source.close`: every thread is let go, each stopped for a moment.

        What was started with a filter and has not ended is killed: its ioctls would fail.
        """
        if not self._every_call:
            for pid in {one.pid for one in self._threads.values()}:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for tid in list(self._threads):
            with suppress(OSError):
                _ptrace(_INTERRUPT, tid)
        until = time.monotonic() + _DETACH_SECONDS
        while self._threads and time.monotonic() < until:
            stop = self._next()
            if stop is None:
                time.sleep(_POLL_SECONDS)
                continue
            tid, status = stop
            number, event = status >> 8 & 0xFF, status >> 16
            is_signal = os.WIFSTOPPED(status) and not event and number != _SYSCALL_STOP
            if os.WIFSTOPPED(status):
                self._resume(_DETACH, tid, number if is_signal else 0)
            self._threads.pop(tid, None)


def _signed(value: int) -> int:
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


def _field(tid: int, name: str) -> int:
    try:
        with open(f"/proc/{tid}/status", errors="replace") as file:
            for line in file:
                if line.startswith(name + ":"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def _tgid(tid: int) -> int:
    return _field(tid, "Tgid") or tid


def _tracer(tid: int) -> int:
    return _field(tid, "TracerPid")


NO_TRACING = 3
"""Yama's setting with which no process may be traced."""


def yama() -> int:
    """Return the setting of the Yama module: 0 to 3; 0 if it is not there."""
    try:
        with open("/proc/sys/kernel/yama/ptrace_scope") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


def _not_traced(process: Process, tracer: int, error: OSError) -> EnvironmentFault:
    what = f"process {process.pid} cannot be traced"
    if tracer:
        return EnvironmentFault(
            f"{what}: process {tracer} traces it already", hint="end that debugger or strace first"
        )
    if error.errno == errno.EIO:
        return EnvironmentFault(f"{what}: PTRACE_SEIZE is not supported", hint="needs Linux 5.3")
    scope = yama()
    if scope == NO_TRACING:
        hint = "Yama forbids all tracing until the next boot (kernel.yama.ptrace_scope=3)"
    elif scope and process.user == os.geteuid():
        hint = f"Yama permits it to root only (kernel.yama.ptrace_scope={scope}), or to its parent"
    else:
        hint = f"record as root, or as its user (uid {process.user})"
    return EnvironmentFault(f"{what}: {error.strerror}", hint=hint)


_ALLOW, _TRACE = 0x7FFF_0000, 0x7FF0_0000
_ARCHITECTURE = 0xC000_003E  # AUDIT_ARCH_X86_64
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_AT_NUMBER, _AT_ARCHITECTURE, _AT_SECOND = 0, 4, 24  # struct seccomp_data

FILTER = (
    (_LOAD, 0, 0, _AT_ARCHITECTURE),
    (_EQUAL, 0, 6, _ARCHITECTURE),
    (_LOAD, 0, 0, _AT_NUMBER),
    (_EQUAL, 0, 4, _IOCTL),
    (_LOAD, 0, 0, _AT_SECOND),
    (_EQUAL, 2, 0, KVM_RUN),
    (_AND, 0, 0, 0xFF00),
    (_EQUAL, 1, 0, 0xAE00),
    (_RETURN, 0, 0, _ALLOW),
    (_RETURN, 0, 0, _TRACE),
)
"""Classic BPF: code, jump if true, jump if false, operand.  Ioctls of KVM but KVM_RUN are
reported to the tracer."""


def install_filter() -> None:
    """Give this process the filter, and all that it starts and executes.

    Without CAP_SYS_ADMIN it gains no privileges by executing from then on.

    :raises OSError: the kernel refuses.
    """
    code = b"".join(struct.pack("<HBBI", *one) for one in FILTER)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("<H6xQ", len(FILTER), ctypes.addressof(buffer))
    place = ctypes.create_string_buffer(program, len(program))
    for attempt in range(2):
        if not _libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, place, 0, 0):
            return
        number = ctypes.get_errno()
        if attempt or number != errno.EACCES or _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(number, os.strerror(number))
