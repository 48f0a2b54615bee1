"""The stream's RAM for a fresh VM, and the two instructions that are replaced in it.

KVM does not return to user space when L2 exits to L1, so the first instruction that L1
would execute is replaced with an OUT to an unused port (:data:`STOP`): KVM_RUN returns
when L1 has control and has executed nothing yet.  That needs neither single-stepping nor
a breakpoint (which an emulated host does not honour), and works on every kernel.  The VM
has a private copy; the file is not changed.

For conformance runs L2's next instruction is replaced as well, by one that L1
intercepts, so that a sequence does not depend on L2's own code.  Stops are also placed
wherever a vCPU may continue whose registers were not all loaded, among these the reset
vector, and L2 gets an IDT if it has room for one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qemu_svm.errors import Malformed
from qemu_svm.machine import Machine
from qemu_svm.memory.layout import Use
from qemu_svm.model import arguments
from qemu_svm.model.area import RESET, Area
from qemu_svm.model.plans import Step
from qemu_svm.model.saved import Saved, areas
from qemu_svm.nested import bits
from qemu_svm.replay.encode import STOP_PORT
from qemu_svm.source import Source
from qemu_svm.x86.paging import Paging, Read, through
from qemu_svm.x86.registers import CR0, EFER
from qemu_svm.x86.segments import Segment

STOP = bytes((0xE6, STOP_PORT, 0xF4))  # out %al, $port; hlt
_STOPS = 3 * STOP[:2] + STOP
"""Stops each of several runs: the OUT that ended a run is completed by the next one."""
_VMRUN = b"\x0f\x01\xd8"
STUB_BYTES = 16
"""No stub is longer."""
_NESTED_PAGING = 1
_MEMORY = (Use.RAM, Use.DIMM, Use.VIRTIO_MEM)
_RESET_RIP, _RESET_BASE = 0xFFF0, 0xFFFF_0000
_EXITS = (("CPUID", b"\x0f\xa2"), ("VMMCALL", b"\x0f\x01\xd9"), ("HLT", b"\xf4"))
"""Instructions by the intercept that makes them exit to L1.  A stop after them ends a
run in which they do not, because L2's code runs in L1's context, or L1's intercepts changed."""
_PAGE = 0x1000
_IDT_PAGES = range(_PAGE, 8 * _PAGE, _PAGE)
_VECTORS, _HANDLER = 32, 0x200
_INTERRUPT_GATE = 0x8E
_RESET_PAGE = 0xFFFF_F000
"""The page with the reset vector."""
_PE = CR0.mask("PE")
_LMA = EFER.mask("LMA")

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


def extract_ram(
    machine: Machine, path: str, channels: Sequence[Source] = (), *, reset_page: bool = False
) -> RamFile:
    """Write the stream's main RAM to a new file.

    :param channels: other inputs with pages of the stream, as for ``read_ram``.
    :param reset_page: there is memory at the reset vector too; a real machine has ROM there.
    :raises StreamError: there is no RAM, or it cannot be read completely.
    :raises OSError: the file cannot be written.
    """
    from qemu_svm.memory.copying import copy_all
    from qemu_svm.memory.memory import GuestMemory
    from qemu_svm.stream.ram.read import read_ram

    if not machine.blocks and machine.form is not None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return RamFile(path, (), os.open(path, flags, 0o600))
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
            if reset_page and not any(a <= _RESET_PAGE < a + size for a, size, _ in placed):
                placed.append((_RESET_PAGE, _PAGE, offset))
                offset += _PAGE
            os.ftruncate(fd, offset)
        except BaseException:
            os.close(fd)
            raise
    return RamFile(path, tuple(placed), fd)


def paging(area: Area) -> Paging:
    """Return the paging that an area's control registers select."""
    return Paging(area.get("cr0"), area.get("cr3"), area.get("cr4"), area.get("efer"))


def patches(
    read: Read, saved: Saved, steps: Sequence[Step], *, shorten: bool, vmrun: bool = False
) -> list[Patch]:
    """Return the changes of memory that make a replay of ``steps`` end at L1.

    :param saved: as :func:`with_idt` returns it, if ``shorten``.
    :param shorten: replace L2's next instruction as well, and place a stop where a
        vCPU continues whose registers were not all loaded.
    :param vmrun: with ``shorten``, L1 executes VMRUN after the first stop, then stops again.
    """
    changed: dict[int, bytes] = {}
    for step in steps:
        if step.name == "nested":
            given = arguments.nested(saved, step)
            _, save = areas(given.vmcb)
            place = paging(save).walk(read, _linear(save, save.get("rip")))
            if place is not None:
                changed.setdefault(place, _stub(shorten=shorten, vmrun=vmrun))
    if shorten:
        code = _exit_of(saved) if saved.guest_mode else None
        place = _l2_address(read, saved, _linear(saved.sregs, saved.regs["rip"]))
        if code is not None and place is not None:
            room = _PAGE - place % _PAGE  # the next page may be elsewhere
            changed.setdefault(place, (code + _STOPS)[:room])
        for address, data in _idt(read, saved):
            changed.setdefault(address, data)
        for rip in (_RESET_RIP, saved.regs["rip"], saved.l1().get("rip")):
            for place in (rip, _RESET_BASE + rip & 0xFFFF_FFFF):
                changed.setdefault(place, _STOPS)
    return list(changed.items())


def _stub(*, shorten: bool, vmrun: bool) -> bytes:
    # What L1 executes after a #VMEXIT.  Its RAX is that of its last VMRUN: vmcb12.
    if not shorten:
        return STOP
    return STOP[:2] + _VMRUN + _STOPS if vmrun else _STOPS


def can_shorten(read: Read, saved: Saved) -> bool:
    """Whether L2's next instruction can be one that L1 intercepts."""
    address = _linear(saved.sregs, saved.regs["rip"])
    return (
        saved.guest_mode
        and _exit_of(saved) is not None
        and _l2_address(read, saved, address) is not None
    )


def with_idt(read: Read, saved: Saved) -> Saved:
    """Return what a shortened replay loads: L2 with an IDT whose handlers end the run.

    The IDT is placed in an empty page below 32 KiB that L2 maps; without one L2 keeps its own.
    """
    page = _idt_page(read, saved)
    if page is None:
        return saved
    sregs = saved.sregs.copy()
    limit = _VECTORS * _gate_bytes(saved.sregs) - 1
    sregs.set("idtr", Segment(0, page, limit, 0), RESET)
    return replace(saved, sregs=sregs)


def handlers(sregs: Area) -> range:
    """Return where RIP may be in a handler of :func:`with_idt`; nowhere if there is none."""
    table = sregs.segment("idtr")
    if table.base not in _IDT_PAGES or table.limit != _VECTORS * _gate_bytes(sregs) - 1:
        return range(0)
    return range(table.base + _HANDLER, table.base + _HANDLER + STUB_BYTES)


def _idt_page(read: Read, saved: Saved) -> int | None:
    if not saved.guest_mode or not saved.sregs.get("cr0") & _PE:
        return None
    for page in _IDT_PAGES:
        place = _l2_address(read, saved, page)
        if place is not None and read(place, _PAGE) == bytes(_PAGE):
            return page
    return None


def _gate_bytes(sregs: Area) -> int:
    return 16 if sregs.get("efer") & _LMA else 8


def _idt(read: Read, saved: Saved) -> Iterator[Patch]:
    # The table that with_idt has put into IDTR, and the one handler of all its gates.
    found = handlers(saved.sregs)
    if not found:
        return
    offset, selector = found.start, saved.sregs.segment("cs").selector
    gate = struct.pack("<HHBBHQ", offset & 0xFFFF, selector, 0, _INTERRUPT_GATE, 0, 0)
    for address, data in (
        (offset - _HANDLER, gate[: _gate_bytes(saved.sregs)] * _VECTORS),
        (offset, _STOPS),
    ):
        place = _l2_address(read, saved, address)
        if place is not None:
            yield place, data


def _exit_of(saved: Saved) -> bytes | None:
    intercepts = saved.control().get("intercepts")
    return next((c for name, c in _EXITS if intercepts & bits.INTERCEPTS.mask(name)), None)


def _l2_address(read: Read, saved: Saved, address: int) -> int | None:
    # The guest-physical address of a linear one of L2.
    control, l1 = saved.control(), saved.l1()
    if not control.get("nested_ctl") & _NESTED_PAGING:
        return paging(saved.sregs).walk(read, address)
    tables = Paging(l1.get("cr0"), control.get("nested_cr3"), l1.get("cr4"), l1.get("efer"))
    inner = through(read, lambda one: tables.walk(read, one))
    place = paging(saved.sregs).walk(inner, address)
    return None if place is None else tables.walk(read, place)


def _linear(area: Area, rip: int) -> int:
    code = area.segment("cs")
    long_mode = code.attrib & 0x200 and area.get("efer") & 0x400
    return rip if long_mode else (code.base + rip) & 0xFFFF_FFFF
