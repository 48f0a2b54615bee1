"""Entries and exits become calls: which VM and vCPU they are for, and what is lost."""

from __future__ import annotations

import re
from collections.abc import Callable

from qemu_svm.kvm.numbers import by_number
from qemu_svm.recorder.events import Entered, Left
from qemu_svm.recorder.log import (
    ATTACHED,
    CALL,
    DESCRIPTOR,
    END,
    LEVELS,
    LOST,
    NO_DATA,
    RUN,
    Record,
)
from qemu_svm.recorder.process import Process
from qemu_svm.recorder.shapes import CREATE_VCPU, CREATE_VM, KVM_RUN

SYSTEM, VM, VCPU, DEVICE = range(1, 5)
_CREATE_DEVICE = 0xC00C_AEE0
_LINKS = (
    (re.compile(r"/dev/kvm"), SYSTEM),
    (re.compile(r"anon_inode:kvm-vm"), VM),
    (re.compile(r"anon_inode:kvm-vcpu:(\d+)"), VCPU),
    (re.compile(r"anon_inode:\[?kvm-.*"), DEVICE),
)
_EXIT_REASON = 4  # bytes of it
_FD_MASK = 0xFFFF_FFFF


class Calls:
    """The calls of one process, as records.

    :param write: is given each record.
    """

    def __init__(self, process: Process, write: Callable[[Record], None]) -> None:
        self._process = process
        self._write = write
        self._places: dict[int, tuple[int, int]] = {}
        self._open: dict[int, Entered] = {}
        self.program = process.program()
        self.calls = 0
        self.vms = 0
        self.vcpus = 0
        self.lost = 0

    def attach_late(self, time: int) -> None:
        """The process runs already: note the descriptors that it has.

        :raises EnvironmentFault: they cannot be read.
        """
        self._write(Record(ATTACHED, time))
        for fd, link in self._process.descriptors().items():
            self._note(fd, link, time)

    def enter(self, event: Entered) -> None:
        """Take the entry of a call; an earlier one of the same thread has lost its exit."""
        self._finish(self._open.pop(event.tid, None))
        self._open[event.tid] = event

    def leave(self, event: Left) -> None:
        """Take the exit of a call: its record is written."""
        entry = self._open.pop(event.tid, None)
        if entry is not None and (entry.number, entry.fd) != (event.number, event.fd):
            self._finish(entry)
            entry = None
        time = event.time if entry is None else entry.time
        level, index = self._place(event.fd, event.number, time)
        record = Record(
            CALL, time, event.tid, event.fd, level, index, event.number, event.argument,
            event.result, event.time - time,
        )  # fmt: skip
        if event.number == KVM_RUN:
            record.kind = RUN
            record.argument = 0 if entry is None else entry.runs
            record.data_out = (event.data or b"")[:_EXIT_REASON]
        elif entry is None or entry.data is None or event.data is None:
            record.kind = NO_DATA
            record.data_out = event.data or b""
        else:
            record.data_in, record.data_out = entry.data, event.data
        self.calls += 1
        self._write(record)
        if event.result >= 0:
            self._created(event, record)

    def lose(self, count: int, time: int) -> None:
        """Note that messages were lost."""
        self.lost += count
        self._write(Record(LOST, time, argument=count))

    def end(self, runs: dict[int, int], time: int) -> None:
        """Write what is unfinished, and the numbers of KVM_RUN by descriptor."""
        for entry in list(self._open.values()):
            self._finish(entry)
        self._open.clear()
        for fd, count in sorted(runs.items()):
            level, index = self._places.get(fd, (VCPU, 0))
            self._write(Record(END, time, 0, fd, level, index, argument=count))
        if not runs:
            self._write(Record(END, time))

    def _finish(self, entry: Entered | None) -> None:
        # A call of which no exit came: the process was killed in it, or the exit was lost.
        if entry is None:
            return
        level, index = self._place(entry.fd, entry.number, entry.time)
        record = Record(
            NO_DATA, entry.time, entry.tid, entry.fd, level, index, entry.number, entry.argument,
            data_in=entry.data or b"",
        )  # fmt: skip
        if entry.number == KVM_RUN:
            record.kind, record.argument = RUN, entry.runs
        self.calls += 1
        self._write(record)

    def _place(self, fd: int, number: int, time: int) -> tuple[int, int]:
        # Level and index of a descriptor; a number of another level shows that it is a new one.
        ioctl = by_number(number)
        levels = () if ioctl is None else [LEVELS.index(level.value) for level in ioctl.levels]
        known = self._places.get(fd)
        if known is not None and (not levels or known[0] in levels):
            return known
        link = self._process.link(fd)
        if link is not None and self._note(fd, link, time):
            return self._places[fd]
        place = (levels[0] if len(levels) == 1 else 0, 0)
        if place[0]:
            self._enter(fd, place)
        return place

    def _note(self, fd: int, link: str, time: int) -> bool:
        # Learn a descriptor from its link.
        for pattern, level in _LINKS:
            found = pattern.fullmatch(link)
            if found:
                index = int(found[1]) if level == VCPU else self.vms if level == VM else 0
                self._enter(fd, (level, index))
                record = Record(DESCRIPTOR, time, 0, fd, level, index)
                record.data_out = link.encode(errors="surrogateescape")
                self._write(record)
                return True
        return False

    def _enter(self, fd: int, place: tuple[int, int]) -> None:
        self._places[fd] = place
        self.vms += place[0] == VM
        self.vcpus += place[0] == VCPU

    def _created(self, event: Left, record: Record) -> None:
        if event.number == CREATE_VM:
            self._enter(event.result, (VM, self.vms))
        elif event.number == CREATE_VCPU:
            self._enter(event.result, (VCPU, event.argument & _FD_MASK))
        elif event.number == _CREATE_DEVICE and len(record.data_out) >= 8:
            self._enter(int.from_bytes(record.data_out[4:8], "little"), (DEVICE, 0))
