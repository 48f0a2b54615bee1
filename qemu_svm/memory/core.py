"""An ELF core of L1 or of L2 that debuggers open.

Two forms, because no single one suits all:

``crash``
    Loads by physical address, without virtual ones; notes with registers and
    VMCOREINFO.  crash, drgn, makedumpfile, libkdumpfile and volatility3 take it.
``gdb``
    Loads by virtual address that point into the same data; gdb needs them, and
    makedumpfile refuses them.

Pages that are zero, or that the stream does not have, are holes of the file.  Pages
that L1 has not mapped for L2 are in no load at all: what is missing is counted.
"""

from __future__ import annotations

import os
import shlex
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from qemu_svm.errors import AddressError, EnvironmentFault, PathError
from qemu_svm.memory import notes, registers
from qemu_svm.memory.copying import Copy, copy_all
from qemu_svm.memory.layout import Use
from qemu_svm.memory.memory import GuestMemory
from qemu_svm.memory.paging import mode
from qemu_svm.memory.physical import ENCODED, FIRST_PLACE, NEVER, NOTHING, Physical
from qemu_svm.memory.registers import Registers
from qemu_svm.memory.results import Run
from qemu_svm.memory.spaces import Space
from qemu_svm.memory.vmcoreinfo import VmCoreInfo, find

FORMS = ("crash", "gdb")
_ALIASES = 4  # of one page of virtual memory that become loads
_PAGE = 4096
_KEPT_FREE = 16 << 20


@dataclass(frozen=True, slots=True)
class Load:
    """Physical addresses of the level that follow one another.

    :param start: in the level's physical memory; ``size`` in bytes.
    """

    start: int
    size: int

    @property
    def end(self) -> int:
        """First address after it."""
        return self.start + self.size


Part = tuple[int, int, int]
"""Address in the level's physical memory, L1-physical address, size."""


@dataclass(frozen=True)
class Plan:
    """A core before it is written.

    :param level: ``l1``, ``l2`` or ``l2@ROOT``.
    :param missing: what it lacks, in words.
    :param zero: pages that hold nothing but zeros; ``never`` were never sent.
    """

    level: str
    form: str
    loads: tuple[Load, ...]
    virtual: tuple[tuple[int, int, int], ...]
    registers: tuple[Registers, ...]
    vmcoreinfo: VmCoreInfo | None
    missing: tuple[str, ...]
    space: Physical | Space
    data: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def physical(self) -> Physical:
        """L1-physical memory."""
        return self.space if isinstance(self.space, Physical) else self.space.physical

    @property
    def size(self) -> int:
        """Size of the file in bytes, holes included."""
        return self._begin() + sum(load.size for load in self.loads)

    def headers(self) -> bytes:
        """Everything before the memory."""
        found = self._notes()
        programs = self._programs()
        start = notes.HEADER_SIZE + programs * notes.PROGRAM_SIZE
        section = notes.extra_section(programs)
        parts = [notes.header(programs)]
        parts.append(notes.program(notes.PT_NOTE, start + len(section), len(found)))
        offsets, place = [], self._begin()
        for load in self.loads:
            offsets.append(place)
            place += load.size
        if self.form == "crash":
            for load, offset in zip(self.loads, offsets, strict=True):
                parts.append(notes.program(notes.PT_LOAD, offset, load.size, physical=load.start))
        else:
            starts = [load.start for load in self.loads]
            for start, size, target in self.virtual:
                at = bisect_right(starts, target) - 1
                offset = offsets[at] + target - starts[at]
                parts.append(
                    notes.program(notes.PT_LOAD, offset, size, virtual=start, physical=target)
                )
        return b"".join((*parts, section, found)).ljust(self._begin(), b"\0")

    def _programs(self) -> int:
        return 1 + len(self.loads if self.form == "crash" else self.virtual)

    def _notes(self) -> bytes:
        parts = [notes.prstatus(one, number) for number, one in enumerate(self.registers)]
        parts += [notes.cpu_state(one) for one in self.registers]
        if self.vmcoreinfo is not None:
            parts.append(notes.vmcoreinfo(self.vmcoreinfo.text))
        return b"".join(parts)

    def _begin(self) -> int:
        # Where memory starts in the file.
        programs = self._programs()
        size = notes.HEADER_SIZE + programs * notes.PROGRAM_SIZE + len(self._notes())
        size += len(notes.extra_section(programs))
        return -(-size // _PAGE) * _PAGE


def levels(memory: GuestMemory) -> list[str]:
    """What a core can be made of: ``l1``, and ``l2@ROOT`` for every L2 that a vCPU runs."""
    roots = {memory.l2_root(vcpu.index) for vcpu in memory.machine.vcpus}
    found = ["l1", *(f"l2@{root:#x}" for root in sorted(one for one in roots if one is not None))]
    bare = [
        vcpu for vcpu in memory.machine.vcpus
        if registers.runs_l2(vcpu) and memory.l2_root(vcpu.index) is None
    ]  # fmt: skip
    return [*found, "l2"] if bare and len(found) == 1 else found


def plan(
    memory: GuestMemory, level: str = "l1", form: str = "crash",
    *, vmcoreinfo: VmCoreInfo | None = None, search: bool = True,
) -> Plan:  # fmt: skip
    """Plan a core.

    :param level: ``l1``, ``l2`` (if all vCPUs that run L2 run the same one) or ``l2@ROOT``,
        with the address of the root of its nested page tables.
    :param form: ``crash`` or ``gdb``.
    :param vmcoreinfo: the note to include; without one it is searched for.
    :param search: search for the note.
    :raises PathError: no vCPU runs such a level, or there is no such form.
    :raises StreamError: a page table is damaged.
    """
    if form not in FORMS:
        raise PathError(f"unknown form '{form}'", near=FORMS)
    space, virtual, vcpus = level_spaces(memory, level)
    most = memory.machine.stream.limits.core_loads
    if level == "l1":
        all_registers = [memory.l1_registers(index) for index in vcpus]
    else:
        all_registers = [memory.l2_registers(index) for index in vcpus]
    loads = _loads(space, most)
    missing = [] if isinstance(space, Physical) else _l2_missing(space, loads)
    if vmcoreinfo is None and search and virtual is not None:
        vmcoreinfo = _found(memory, space, virtual, all_registers)
        if vmcoreinfo is None:
            missing.append("VMCOREINFO: no note that the page tables confirm")
    mapped: list[tuple[int, int, int]] = []
    if form == "gdb" and virtual is not None:
        mapped, aliases = _virtual(virtual, loads, most)
        if aliases:
            missing.append(f"{aliases} further virtual addresses of pages that are included")
    unknown = sorted({name for one in all_registers for name in one.unknown})
    if unknown:
        missing.append(f"registers, written as 0: {' '.join(unknown)}")
    counts = _counts(space)
    if counts["never"]:
        missing.append(f"{counts['never']} pages that were never sent, written as zeros")
    return Plan(
        level, form, tuple(loads), tuple(mapped), tuple(all_registers), vmcoreinfo,
        tuple(missing), space, counts["data"] * memory.physical.page_size, counts,
    )  # fmt: skip


def level_spaces(
    memory: GuestMemory, level: str
) -> tuple[Physical | Space, Space | None, list[int]]:
    """Physical and virtual memory of a level, and the vCPUs that run it.

    :param level: as for :func:`plan`.
    :raises PathError: no vCPU runs it.
    """
    vcpus = _vcpus(memory, level)
    if level == "l1":
        space: Physical | Space = memory.physical
        virtual = memory.world("l1v", vcpus[0]) if vcpus else None
    else:
        space = memory.world("l2p", vcpus[0])
        virtual = memory.world("l2v", vcpus[0])
    return space, virtual if isinstance(virtual, Space) else None, vcpus


def _vcpus(memory: GuestMemory, level: str) -> list[int]:
    every = memory.machine.vcpus
    if level == "l1":
        return [vcpu.index for vcpu in every]
    inside = [vcpu.index for vcpu in every if registers.runs_l2(vcpu)]
    if not inside:
        raise PathError("no vCPU was running L2", near=("l1",))
    if level == "l2":
        roots = {memory.l2_root(index) for index in inside}
        if len(roots) > 1:
            raise PathError("vCPUs were running different L2s", near=levels(memory)[1:])
        return inside
    name, at, root = level.partition("@")
    try:
        number = int(root, 0) if at and name == "l2" else -1
    except ValueError:
        number = -1
    found = [index for index in inside if memory.l2_root(index) == number]
    if not found:
        raise PathError(f"no vCPU was running '{level}'", near=levels(memory))
    return found


def _parts(space: Physical | Space) -> Iterator[Part]:
    # What a core of this memory holds, in order: RAM, and what of it L1 has mapped for L2.
    if isinstance(space, Physical):
        for one in space.ranges:
            if one.use is not Use.FLASH:  # which is not RAM in QEMU's own dump either
                yield one.start, one.start, one.size
        return
    for run in space.runs():
        target = run.target or 0
        for start, size in _backed(space.physical, target, run.size):
            yield run.start + start - target, start, size


def _loads(space: Physical | Space, most: int) -> list[Load]:
    # L1's ranges as they are; L2's pages as far as they follow one another.
    if isinstance(space, Physical):
        return [Load(address, size) for address, _, size in _parts(space)]
    found: list[Load] = []
    try:
        start = end = -1
        for address, _, size in _parts(space):
            if address != end and end >= 0:
                found.append(Load(start, end - start))
                if len(found) >= most:
                    raise AddressError("too many loads", address=address, status="limit")
            if address != end:
                start = address
            end = address + size
        if end >= 0:
            found.append(Load(start, end - start))
    except AddressError as error:
        raise PathError(f"L2's memory cannot be listed: {error}") from error
    return found


def _l2_missing(space: Space, loads: Sequence[Load]) -> list[str]:
    mapped = sum(run.size for run in space.runs())
    without = (mapped - sum(load.size for load in loads)) // _PAGE
    missing = []
    if without:
        missing.append(f"{without} pages that L1 maps to addresses without RAM")
    if holes := _holes(loads):
        missing.append(f"{holes} pages inside L2's memory that L1 has not mapped")
    return missing


def _backed(physical: Physical, start: int, size: int) -> Iterator[tuple[int, int]]:
    end = start + size
    for one in physical.ranges:
        low, high = max(start, one.start), min(end, one.end)
        if low < high:
            yield low, high - low


def _holes(loads: Sequence[Load]) -> int:
    # Pages between loads that are near to each other: probably memory of L2.
    holes = 0
    for one, other in pairwise(loads):
        gap = other.start - one.end
        if gap < 1 << 21:
            holes += gap // _PAGE
    return holes


def _found(
    memory: GuestMemory, space: Physical | Space, virtual: Space, of: Sequence[Registers]
) -> VmCoreInfo | None:
    kernel = None
    if of and of[0].get("cr3") & 1 << 12:
        # With PTI this may be the user's half of the tables, the kernel's is before it.
        bits = registers.physical_bits(memory.vcpu(of[0].vcpu))
        paging = mode(of[0].get("cr0"), of[0].get("cr3") & ~(1 << 12), of[0].get("cr4"),
                      of[0].get("efer"), bits)  # fmt: skip
        kernel = Space(space, paging, world=virtual.world)
    return find(space, virtual, kernel)


def _virtual(
    space: Space, loads: Sequence[Load], most: int
) -> tuple[list[tuple[int, int, int]], int]:
    # Virtual loads: start, size, physical address of the level; and aliases left out.
    starts = [load.start for load in loads]
    found: list[tuple[int, int, int]] = []
    seen: dict[int, int] = {}
    aliases = 0
    for run in _until_limit(space.runs()):
        target = run.target or 0
        if run.size == _PAGE:
            times = seen.get(target, 0)
            if times >= _ALIASES:
                aliases += 1
                continue
            if len(seen) < most:
                seen[target] = times + 1
        at = max(bisect_right(starts, target) - 1, 0)
        while at < len(loads) and loads[at].start < target + run.size:
            low = max(target, loads[at].start)
            high = min(target + run.size, loads[at].end)
            if low < high:
                found.append((run.start + low - target, high - low, low))
            at += 1
        if len(found) > most:
            break
    return found, aliases


def _until_limit(runs: Iterable[Run]) -> Iterator[Run]:
    try:
        yield from runs
    except AddressError:
        return


def _counts(space: Physical | Space) -> dict[str, int]:
    counts = {"data": 0, "zero": 0, "never": 0}
    physical = space if isinstance(space, Physical) else space.physical
    for _, start, size in _parts(space):
        for extent in physical.extents(start, start + size):
            pages = extent.size // physical.page_size
            if extent.word >= FIRST_PLACE or extent.word == ENCODED:
                counts["data"] += pages
            elif extent.word in (NEVER, NOTHING):
                counts["never"] += pages
            else:
                counts["zero"] += pages
    return counts


def write(core: Plan, fd: int, progress: Callable[[int], None] = lambda _done: None) -> None:
    """Write a core into an empty file.

    :param progress: called with the number of bytes of memory done.
    :raises EnvironmentFault: the disk has not enough room.
    :raises StreamError: a page is damaged.
    :raises OSError: the file cannot be written.
    """
    headers = core.headers()
    disk = os.fstatvfs(fd)
    free, wanted = disk.f_bavail * disk.f_frsize, core.data + len(headers)
    if free < wanted + _KEPT_FREE:
        raise EnvironmentFault(
            f"not enough room for the core: {wanted >> 20} MiB of data, {free >> 20} MiB free"
        )
    os.pwrite(fd, headers, 0)
    os.ftruncate(fd, core.size)
    copy_all(core.physical, _copies(core, len(headers)), fd, progress)


def _copies(core: Plan, place: int) -> Iterator[Copy]:
    for _, start, size in _parts(core.space):
        yield start, size, place
        place += size


def open_commands(core: Plan, path: str) -> Iterator[str]:
    """Return the commands that open a core, with the name of the image that fits it.

    :param path: of the core.
    """
    quoted = shlex.quote(path)
    note = core.vmcoreinfo
    image = f"vmlinux-{note.release}" if note is not None and note.release else "vmlinux"
    image = shlex.quote(image)
    if core.form == "crash":
        yield f"crash -s {image} {quoted}"
        yield f"drgn -c {quoted} -s {image}"
        return
    shift = note.kaslr_offset if note is not None else None
    symbols = f"add-symbol-file {image} -o {shift:#x}" if shift else f"file {image}"
    yield f"gdb -ex {shlex.quote(symbols)} -c {quoted}"
