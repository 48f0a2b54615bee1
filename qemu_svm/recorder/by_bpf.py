"""Recording by eBPF: nothing in the recorded process changes."""

from __future__ import annotations

import fcntl
import os
import select
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

from qemu_svm.recorder import bpf, programs
from qemu_svm.recorder.events import Ended, Entered, Event, Left, Lost, Source, Started
from qemu_svm.recorder.process import FIRST_NAMESPACE, Process, ProcessGone
from qemu_svm.recorder.shapes import (
    CAP_XSAVE2,
    CHECK_EXTENSION,
    KVM_RUN,
    SHAPE_SIZE,
    XSAVE_SIZE,
    shapes,
)

BUFFER_MIB, MOST_MIB = 16, 1024
"""MiB of the ring buffer, if nothing else is wished, and at most."""
BUFFER = BUFFER_MIB << 20


def ring_size(mib: int) -> int:
    """Return the bytes of a ring buffer of at least so many MiB: a power of two.

    >>> ring_size(5) >> 20
    8
    """
    return 1 << (mib - 1).bit_length() << 20


_WATCHED, _DESCRIPTORS, _THREADS = 1024, 16384, 16384
_PREEMPTS = 7
"""Since this version of Linux programs on raw tracepoints may be preempted."""

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MILLISECONDS = 1000


class BpfSource(Source):
    """See :class:`Source`.

    :param buffer: bytes of the ring buffer, a power of two.
    :param wake: a descriptor that becomes readable when a signal came.
    :param follow: processes can be watched with their children.
    :raises BpfError: the kernel refuses.
    """

    def __init__(self, buffer: int, wake: int, *, follow: bool) -> None:
        self._stack = ExitStack()
        self._links = ExitStack()
        self._maps: dict[str, bpf.Map] = {}
        self._lost = 0
        self._ends: dict[int, int] = {}
        try:
            self._prepare(buffer, wake, follow=follow)
        except BaseException:
            self.close()
            raise

    def _prepare(self, buffer: int, wake: int, *, follow: bool) -> None:
        message = programs.SCRATCH_SIZE
        for name, kind, key, value, entries in (
            ("ring", bpf.RINGBUF, 0, 0, buffer),
            ("watched", bpf.HASH, 4, 4, _WATCHED),
            ("newborn", bpf.HASH, 8, 4, _WATCHED),
            ("threads", bpf.HASH, 8, 8, _THREADS),
            ("descriptors", bpf.HASH, 8, programs.DESCRIPTOR.size, _DESCRIPTORS),
            ("shapes", bpf.HASH, 4, SHAPE_SIZE, len(shapes())),
            ("settings", bpf.ARRAY, 4, 8, 2),
            ("scratch", bpf.PERCPU_ARRAY, 4, message, 2 * programs.MOST_COPIES),
        ):
            made = bpf.make_map(kind, key, value, entries, name)
            self._stack.callback(made.close)
            self._maps[name] = made
        for number, shape in shapes().items():
            self._maps["shapes"].put(_U32.pack(number), shape.packed())
        self._set_xsave(XSAVE_SIZE)
        self._namespace = _own_namespace()
        maps = {name: one.fd for name, one in self._maps.items()}
        copies = programs.MOST_COPIES if _preempts(os.uname().release) else 1
        variant = programs.Variant(self._namespace, follow=follow, copies=copies)
        for name, program in programs.programs(maps, variant):
            fd = bpf.load(program, name[:15])
            self._stack.callback(os.close, fd)
            self._links.callback(os.close, bpf.attach(fd, name))
        self._ring = bpf.Ring(self._maps["ring"].fd, buffer)
        self._stack.callback(self._ring.close)
        self._poll = select.poll()
        self._poll.register(self._maps["ring"].fd, select.POLLIN)
        self._poll.register(wake, select.POLLIN)

    def _set_xsave(self, size: int) -> None:
        key = _U32.pack(programs.SETTING_XSAVE)
        self._maps["settings"].put(key, _U64.pack(size))

    def watch(self, process: Process, *, children: bool, late: bool) -> None:
        """See :meth:`Source.watch`."""
        if late:
            places = process.run_mappings()
            for fd in process.descriptors():
                place = places.get(fd, 0)
                key = _U64.pack(process.pid << 32 | fd)
                self._maps["descriptors"].put(key, programs.DESCRIPTOR.pack(1, 0, 0, place))
            self._set_xsave(_xsave_size())
        self.adopt(process)
        self._maps["watched"].put(_U32.pack(process.pid), _U32.pack(children))

    def can_see(self, process: Process) -> bool:
        """Whether the programs know a process by the number that it has here."""
        return self._namespace is None or process.namespace() == self._namespace[1]

    def adopt(self, process: Process) -> None:
        """See :meth:`Source.adopt`.

        :raises ProcessGone: it has ended.
        """
        try:
            fd = os.pidfd_open(process.pid)
        except OSError as error:
            raise ProcessGone(f"process {process.pid} has ended") from error
        if not process.is_alive():
            os.close(fd)
            raise ProcessGone(f"process {process.pid} has ended")
        self._ends[fd] = process.pid
        self._poll.register(fd, select.POLLIN)

    def wait(self, seconds: float) -> Iterable[Event]:
        """See :meth:`Source.wait`."""
        ready = self._poll.poll(seconds * _MILLISECONDS)
        return self._events([fd for fd, _events in ready if fd in self._ends])

    def _events(self, ended: Sequence[int]) -> Iterator[Event]:
        for message in self._ring.messages():
            yield _event(message)
        for fd in ended:
            yield Ended(self._ends[fd], None)
        value = self._maps["settings"].get(_U32.pack(programs.SETTING_LOST))
        lost = 0 if value is None else _U64.unpack(value)[0]
        if lost > self._lost:
            yield Lost(lost - self._lost)
            self._lost = lost

    def forget(self, pid: int) -> None:
        """See :meth:`Source.forget`."""
        for fd in [one for one, process in self._ends.items() if process == pid]:
            self._poll.unregister(fd)
            os.close(fd)
            del self._ends[fd]
        self._maps["watched"].remove(_U32.pack(pid))
        for key, _value in list(self._maps["descriptors"].items()):
            if _U64.unpack(key)[0] >> 32 == pid:
                self._maps["descriptors"].remove(key)

    def runs(self, pid: int) -> dict[int, int]:
        """See :meth:`Source.runs`."""
        found = {}
        for key, value in self._maps["descriptors"].items():
            number = _U64.unpack(key)[0]
            runs = programs.DESCRIPTOR.unpack(value)[1]
            if number >> 32 == pid and runs:
                found[number & 0xFFFF_FFFF] = runs
        return found

    def stop(self) -> Iterable[Event]:
        """See :meth:`Source.stop`."""
        self._links.close()
        return self._events(())

    def close(self) -> None:
        """See :meth:`Source.close`."""
        self._links.close()
        for fd in self._ends:
            os.close(fd)
        self._ends.clear()
        self._stack.close()


def _event(message: memoryview) -> Event:
    (
        kind, length, time, who, number, fd, argument, result, extra, _wanted, flags,
    ) = programs.HEADER.unpack_from(message)  # fmt: skip
    pid, tid = who >> 32, who & 0xFFFF_FFFF
    start = programs.HEADER.size
    data = None if flags & programs.UNREADABLE else bytes(message[start : start + length])
    if kind == programs.ENTRY:
        return Entered(pid, tid, time, number, fd, argument, data, extra)
    if kind == programs.EXIT:
        if number == KVM_RUN:
            data = b"" if extra == programs.UNKNOWN else _U64.pack(extra)
        return Left(pid, tid, time, number, fd, argument, result, data)
    return Started(pid)


def _preempts(release: str) -> bool:
    major = release.partition(".")[0]
    return major.isdigit() and int(major) >= _PREEMPTS


def _own_namespace() -> tuple[int, int] | None:
    # Device and inode of this process's PID namespace; None for the kernel's first one.
    try:
        own = os.stat("/proc/self/ns/pid")
    except OSError:
        return None
    return None if own.st_ino == FIRST_NAMESPACE else (own.st_dev, own.st_ino)


def _xsave_size() -> int:
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return XSAVE_SIZE
    try:
        return max(fcntl.ioctl(fd, CHECK_EXTENSION, CAP_XSAVE2), XSAVE_SIZE)
    except OSError:
        return XSAVE_SIZE
    finally:
        os.close(fd)
