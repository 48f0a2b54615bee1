"""The stream's RAM for a fresh VM, and the two instructions that are replaced in it.

KVM does not return to user space when L2 exits to L1, so the first instruction that L1
would execute is replaced with an OUT to an unused port (:data:`STOP`): KVM_RUN returns
when L1 has control and has executed nothing yet.  That needs neither single-stepping nor
a breakpoint (which an emulated host does not honour), and works on every kernel.  The VM
has a private copy; the file is not changed.

For conformance runs L2's next instruction is replaced as well, by one that L1
intercepts, so that a sequence does not depend on L2's own code.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from qemu_svm.errors import Malformed
from qemu_svm.machine import Machine
from qemu_svm.memory.layout import Use
from qemu_svm.model import arguments
from qemu_svm.model.area import Area
from qemu_svm.model.plans import Step
from qemu_svm.model.saved import Saved, areas
from qemu_svm.nested import bits
from qemu_svm.replay.encode import STOP_PORT
from qemu_svm.source import Source
from qemu_svm.x86.paging import Paging, Read, through

STOP = bytes((0xE6, STOP_PORT, 0xF4))  # out %al, $port; hlt
_NESTED_PAGING = 1
_MEMORY = (Use.RAM, Use.DIMM, Use.VIRTIO_MEM)
_RESET_RIP, _RESET_BASE = 0xFFF0, 0xFFFF_0000
_HLT = b"\xf4"
_EXITS = (("CPUID", b"\x0f\xa2" + _HLT), ("VMMCALL", b"\x0f\x01\xd9" + _HLT), ("HLT", _HLT))
"""Instructions by the intercept that makes them exit to L1.  The HLT after them ends a
run in which they do not, because L2's code runs in L1's context."""

Patch = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class RamFile:
    """RAM in a sparse file: ``(address, size, offset in the file)`` of each range."""

    path: str
    ranges: tuple[tuple[int, int, int], ...]
    fd: int

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def read(self, address: int, size: int) -> bytes:
        """Read guest-physical memory; returns fewer bytes where there is none."""
        for start, length, offset in self.ranges:
            if start <= address < start + length:
                return os.pread(self.fd, min(size, start + length - address),
                                offset + address - start)  # fmt: skip
        return b""

    def backed(self, address: int, size: int) -> bool:
        """Whether all of it is memory."""
        return any(a <= address and address + size <= a + n for a, n, _ in self.ranges)

    def extents(self, offset: int, size: int) -> list[tuple[int, int]]:
        """Return ``(offset, size)`` of the parts of a range of the file that are not holes."""
        found = []
        place, end = offset, offset + size
        while place < end:
            try:
                start = os.lseek(self.fd, place, os.SEEK_DATA)
            except OSError:
                break
            stop = min(os.lseek(self.fd, start, os.SEEK_HOLE), end)
            if start < stop:
                found.append((start, stop - start))
            place = max(stop, start + 1)
        return found


def extract_ram(machine: Machine, path: str, channels: Sequence[Source] = ()) -> RamFile:
    """Write the stream's main RAM to a new file.

    :param channels: other inputs with pages of the stream, as for ``read_ram``.
    :raises StreamError: there is no RAM, or it cannot be read completely.
    :raises OSError: the file cannot be written.
    """
    from qemu_svm.memory.copying import copy_all
    from qemu_svm.memory.memory import GuestMemory
    from qemu_svm.stream.ram.read import read_ram

    if not machine.blocks:
        raise Malformed(
            "the stream has no RAM, so its guest cannot run",
            offset=0,
            hint="a stream saved without shared memory (x-ignore-shared) cannot be replayed",
        )
    with read_ram(machine.stream, channels) as ram:
        if ram.problems:
            raise ram.problems[0]  # a guest with holes in its memory proves nothing
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            physical = GuestMemory(machine, ram).physical
            placed, offset = [], 0
            for one in physical.ranges:
                if one.use in _MEMORY:
                    placed.append((one.start, one.size, offset))
                    offset += one.size
            copy_all(physical, placed, fd)
            os.ftruncate(fd, offset)
        except BaseException:
            os.close(fd)
            raise
    return RamFile(path, tuple(placed), fd)


def paging(area: Area) -> Paging:
    """Return the paging that an area's control registers select."""
    return Paging(area.get("cr0"), area.get("cr3"), area.get("cr4"), area.get("efer"))


def patches(read: Read, saved: Saved, steps: Sequence[Step], *, shorten: bool) -> list[Patch]:
    """Return the changes of memory that make a replay of ``steps`` end at L1.

    :param shorten: replace L2's next instruction as well, and place a HLT where a
        vCPU continues whose registers were not all loaded.
    """
    changed: dict[int, bytes] = {}
    for step in steps:
        if step.name == "nested":
            given = arguments.nested(saved, step)
            _, save = areas(given.vmcb)
            place = paging(save).walk(read, _linear(save, save.get("rip")))
            if place is not None:
                changed.setdefault(place, STOP)
    if shorten:
        short = _shortening(read, saved) if saved.guest_mode else None
        if short is not None:
            changed.setdefault(*short)
        for rip in (_RESET_RIP, saved.regs["rip"], saved.l1().get("rip")):
            for place in (rip, _RESET_BASE + rip & 0xFFFF_FFFF):
                changed.setdefault(place, _HLT)
    return list(changed.items())


def can_shorten(read: Read, saved: Saved) -> bool:
    """Whether L2's next instruction can be one that L1 intercepts."""
    return saved.guest_mode and _shortening(read, saved) is not None


def _shortening(read: Read, saved: Saved) -> Patch | None:
    control, l1 = saved.control(), saved.l1()
    intercepts = control.get("intercepts")
    code = next((c for name, c in _EXITS if intercepts & bits.INTERCEPTS.mask(name)), None)
    if code is None:
        return None
    address = _linear(saved.sregs, saved.regs["rip"])
    if not control.get("nested_ctl") & _NESTED_PAGING:
        place = paging(saved.sregs).walk(read, address)
        return None if place is None else (place, code)
    tables = Paging(l1.get("cr0"), control.get("nested_cr3"), l1.get("cr4"), l1.get("efer"))
    inner = through(read, lambda one: tables.walk(read, one))
    place = paging(saved.sregs).walk(inner, address)
    place = None if place is None else tables.walk(read, place)
    return None if place is None else (place, code)


def _linear(area: Area, rip: int) -> int:
    code = area.segment("cs")
    long_mode = code.attrib & 0x200 and area.get("efer") & 0x400
    return rip if long_mode else (code.base + rip) & 0xFFFF_FFFF
