"""Entries and exits become records: for which VM and vCPU a call is, and what is lost."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from qemu_svm.kvm.numbers import by_number
from qemu_svm.recorder.events import Entered, Left
from qemu_svm.recorder.log import (
    ATTACHED,
    CALL,
    DESCRIPTOR,
    END,
    LEVELS,
    LOST,
    MEMORY,
    NO_DATA,
    NO_INDEX,
    RUN,
    RUNS,
    Record,
)
from qemu_svm.recorder.process import Process, read_memory
from qemu_svm.recorder.shapes import CREATE_VCPU, CREATE_VM, KVM_RUN

SYSTEM, VM, VCPU, DEVICE = range(1, 5)
_CREATE_DEVICE, _SET_NESTED_STATE = 0xC00C_AEE0, 0x4080_AEBF
_SET_MEMORY = (0x4020_AE46, 0x40A0_AE49)
_LINKS = (
    (re.compile(r"/dev/kvm"), SYSTEM),
    (re.compile(r"anon_inode:kvm-vm"), VM),
    (re.compile(r"anon_inode:kvm-vcpu:(\d+)"), VCPU),
    (re.compile(r"anon_inode:\[?kvm-(?!.*stats).*"), DEVICE),
)
_EXIT_REASON = 4  # bytes of it
_PATIENCE = 300_000_000
"""Nanoseconds that later calls wait for one that has not returned, so that all are in the order
of their entries."""
_CHUNK = 1 << 16


@dataclass
class _Slot:
    # A record, or a call whose record will be here.
    time: int
    entry: Entered | None = None
    record: Record | None = None


class Calls:
    """The calls of one process, as records.

    :param write: is given each record.
    :param ram: write guest memory as well: before the first KVM_RUN after nested state was put,
        else at the end.
    """

    def __init__(self, process: Process, write: Callable[[Record], None], *, ram: bool) -> None:
        self._process = process
        self._write = write
        self._places: dict[int, tuple[int, int]] = {}
        self._slots: deque[_Slot] = deque()
        self._open: dict[int, _Slot] = {}
        self._regions: dict[tuple[int, int], tuple[int, int, int]] = {}
        self._wants_ram = ram
        self._restored = False
        self.program = process.program()
        self.calls = 0
        self.vms = 0
        self.vcpus = 0
        self.lost = 0
        self.ram = 0

    def attach_late(self, time: int) -> None:
        """The process runs already: note the descriptors that it has.

        :raises EnvironmentFault: they cannot be read.
        """
        links = self._process.descriptors()
        self._add(Record(ATTACHED, time, argument=len(links)))
        for fd, link in links.items():
            self._note(fd, link, time)

    def enter(self, event: Entered) -> None:
        """Take the entry of a call; the exit of an earlier one of its thread was lost."""
        before = self._open.pop(event.tid, None)
        if before is not None:
            before.entry = None
        if event.number == KVM_RUN and self._wants_ram and self._restored:
            self._write_ram(event.time)
        slot = _Slot(event.time, event)
        self._open[event.tid] = slot
        self._slots.append(slot)

    def leave(self, event: Left) -> None:
        """Take the exit of a call."""
        slot = self._open.pop(event.tid, None)
        entry = None if slot is None else slot.entry
        if slot is None or entry is None or (entry.number, entry.fd) != (event.number, event.fd):
            if slot is not None:
                slot.entry = None
            if event.number == KVM_RUN:
                return  # its record was written at the entry, or the entry was before ours
            slot, entry = _Slot(event.time), None
            self._slots.append(slot)
        slot.record = self._record(entry, event)
        slot.entry = None
        self.calls += 1
        if event.result >= 0:
            self._learn(event, slot.record)
        self._drain()

    def lose(self, count: int, time: int) -> None:
        """Note that messages were lost."""
        self.lost += count
        self._add(Record(LOST, time, argument=count))

    def tick(self, now: int) -> None:
        """Write what waits for a call that takes long."""
        while self._slots:
            self._drain()
            if not self._slots or now - self._slots[0].time < _PATIENCE:
                return
            slot = self._slots.popleft()
            if slot.entry is not None:
                self._long(slot, slot.entry)

    def _long(self, slot: _Slot, entry: Entered) -> None:
        # A call that does not return soon: KVM_RUN is written without its exit reason, another
        # one when it returns.
        if entry.number == KVM_RUN:
            self._write(self._record(entry, None))
            self.calls += 1
            self._open.pop(entry.tid, None)
        else:
            slot.time = (1 << 63) - 1
            self._slots.append(slot)

    def end(self, reason: int, runs: dict[int, int], time: int) -> None:
        """Write what is unfinished, and the numbers of KVM_RUN by descriptor."""
        for slot in self._slots:
            if slot.entry is not None and slot.entry.number == KVM_RUN:
                slot.record = self._record(slot.entry, None)
                self.calls += 1
            slot.entry = None
        self._open.clear()
        self._drain()
        if self._wants_ram:
            self._write_ram(time)
        rows = b"".join(
            RUNS.pack(fd, self._places.get(fd, (VCPU, 0))[1], count)
            for fd, count in sorted(runs.items())
        )
        self._write(Record(END, time, argument=reason, data_out=rows))

    def _add(self, record: Record) -> None:
        self._slots.append(_Slot(record.time, None, record))
        self._drain()

    def _drain(self) -> None:
        # Write what is complete, up to the first call that has not returned.
        slots = self._slots
        while slots and slots[0].entry is None:
            record = slots.popleft().record
            if record is not None:
                self._write(record)

    def _record(self, entry: Entered | None, event: Left | None) -> Record:
        first = entry or event
        assert first is not None
        succeeded = event is not None and event.result >= 0
        level, index = self._place(first.fd, first.number, first.time, succeeded=succeeded)
        record = Record(
            CALL, first.time, first.tid, first.fd, level, index, first.number, first.argument,
            0 if event is None else event.result, 0 if event is None else event.time - first.time,
        )  # fmt: skip
        data = None if event is None else event.data
        if first.number == KVM_RUN:
            record.kind = RUN
            record.argument = 0 if entry is None else entry.runs
            record.data_out = (data or b"")[:_EXIT_REASON]
            return record
        if entry is None or entry.data is None or data is None:
            record.kind = NO_DATA
        record.data_in = b"" if entry is None else entry.data or b""
        record.data_out = data or b""
        return record

    def _place(self, fd: int, number: int, time: int, *, succeeded: bool) -> tuple[int, int]:
        # Level and index of a descriptor; a number of another level shows that it is a new one.
        # It is read after the call: one that does not have what succeeded was opened since.
        ioctl = by_number(number)
        levels = () if ioctl is None else [LEVELS.index(level.value) for level in ioctl.levels]
        known = self._places.get(fd)
        if known is not None and (not levels or known[0] in levels):
            return known
        link = self._process.link(fd)
        if link is not None and self._note(fd, link, time, levels if succeeded else ()):
            return self._places[fd]
        place = (levels[0] if len(levels) == 1 else 0, NO_INDEX)
        if place[0]:
            self._enter(fd, place)
        return place

    def _note(self, fd: int, link: str, time: int, levels: Sequence[int] = ()) -> bool:
        # Learn a descriptor from its link, if it is of one of the levels.
        for pattern, level in _LINKS:
            found = pattern.fullmatch(link)
            if found and (not levels or level in levels):
                self._enter(fd, (level, int(found[1]) if level == VCPU else NO_INDEX))
                data = link.encode(errors="surrogateescape")
                self._write(Record(DESCRIPTOR, time, 0, fd, data_out=data))
                return True
        return False

    def _enter(self, fd: int, place: tuple[int, int]) -> None:
        self._places[fd] = place
        self.vms += place[0] == VM
        self.vcpus += place[0] == VCPU

    def _learn(self, event: Left, record: Record) -> None:
        # What a call that succeeded has made.
        data = record.data_in
        if event.number == CREATE_VM:
            self._enter(event.result, (VM, NO_INDEX))
        elif event.number == CREATE_VCPU:
            self._enter(event.result, (VCPU, min(event.argument, NO_INDEX)))
        elif event.number == _CREATE_DEVICE and len(record.data_out) >= 8:
            fd = int.from_bytes(record.data_out[4:8], "little")
            self._enter(fd, (DEVICE, NO_INDEX))
        elif event.number in _SET_MEMORY and len(data) >= 32:
            slot = int.from_bytes(data[:4], "little")
            region = [int.from_bytes(data[at : at + 8], "little") for at in (8, 16, 24)]
            self._regions[event.fd, slot] = (region[0], region[1], region[2])
        elif event.number == _SET_NESTED_STATE:
            self._restored = True

    def _write_ram(self, time: int) -> None:
        self._wants_ram = False
        # The address space of SMM has most regions a second time.
        places = {(fd, *region) for (fd, _slot), region in self._regions.items()}
        for fd, guest, size, address in sorted(places):
            for start, data in self._memory(address, size):
                self._write(Record(MEMORY, time, fd=fd, argument=guest + start, data_in=data))
                self.ram += len(data)

    def _memory(self, address: int, size: int) -> Iterator[tuple[int, bytes]]:
        # What is not zero, piece by piece.
        for start in range(0, size, _CHUNK):
            data = read_memory(self._process.pid, address + start, min(_CHUNK, size - start))
            if data is not None and data.strip(b"\0"):
                yield start, data
