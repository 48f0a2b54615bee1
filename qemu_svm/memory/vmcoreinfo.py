"""VMCOREINFO: the note in which Linux tells debuggers where it is; found and proved.

From boot on Linux keeps the finished note in one page: header, ``VMCOREINFO``, text.
L1's memory may hold L2's as well, or that of an earlier kernel.  So a note counts only
if the page tables in use say the same as it does: ``SYMBOL(init_uts_ns)`` (or another
symbol of the kernel image) must lead to where ``phys_base`` says that it is.

Source: Linux ``kernel/crash_core.c``, ``arch/x86/kernel/machine_kexec_64.c``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from qemu_svm.errors import AddressError, PathError, StreamError
from qemu_svm.memory.physical import ENCODED, FIRST_PLACE, Extent, Physical
from qemu_svm.memory.spaces import Space
from qemu_svm.stream.ram.runs import unpack

_NAME = b"VMCOREINFO\0"
_NAME_AT = 12
_HEADER = 24
_WINDOW = 1 << 17
_MOST = 4096 - _HEADER
_MOST_FILE = 4096
_MOST_FOUND = 64
_START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
_SYMBOLS = ("init_uts_ns", "_stext", "swapper_pg_dir", "node_online_map")
_HEAD = (11).to_bytes(4, "little")


@dataclass(frozen=True)
class VmCoreInfo:
    """A note.

    :param address: where it is, physical in the memory that was searched.
    :param text: lines of ``KEY=VALUE``.
    """

    address: int
    text: bytes

    @cached_property
    def values(self) -> dict[str, str]:
        """The lines by key."""
        lines = self.text.decode("ascii", "replace").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def number(self, key: str, base: int = 10) -> int | None:
        """A number; None if there is none of that key."""
        try:
            return int(self.values[key], base)
        except (KeyError, ValueError):
            return None

    @property
    def release(self) -> str:
        """The kernel's release."""
        return self.values.get("OSRELEASE", "")

    @property
    def kaslr_offset(self) -> int | None:
        """How far the kernel is from where it was linked."""
        return self.number("KERNELOFFSET", 16)

    @property
    def phys_base(self) -> int:
        """What is added to an address in the kernel image to make it physical; may be negative."""
        return self.number("NUMBER(phys_base)") or 0

    def symbol(self, name: str) -> int | None:
        """Address of a symbol."""
        return self.number(f"SYMBOL({name})", 16)


def candidates(space: Physical | Space) -> Iterator[VmCoreInfo]:
    """Every note in physical memory, proved or not."""
    found = 0
    for address in _pages(space):
        note = _note(space, address)
        if note is not None:
            yield note
            found += 1
            if found >= _MOST_FOUND:
                return


def _pages(space: Physical | Space) -> Iterator[int]:
    # Pages that begin like a note, in the address space of the caller.
    if isinstance(space, Physical):
        for one in space.ranges:
            yield from _in_extents(space, one.start, one.end)
        return
    physical = space.physical
    for run in space.runs():
        target = run.target or 0
        for place in _in_extents(physical, target, target + run.size):
            yield run.start + place - target


def _in_extents(physical: Physical, start: int, end: int) -> Iterator[int]:
    for extent in physical.extents(start, end):
        try:
            if extent.word == ENCODED:
                for address, data in physical.content(extent):
                    if data[:4] == _HEAD and data[_NAME_AT:].startswith(_NAME):
                        yield address
            elif extent.word >= FIRST_PLACE:
                yield from _in_input(physical, extent)
        except StreamError:
            continue


def _in_input(physical: Physical, extent: Extent) -> Iterator[int]:
    # In pages as they are in the input, with the headers between them.
    page, stride = physical.page_size, extent.stride
    batch = max(1, _WINDOW // stride)
    begin, pages = unpack(extent.word), extent.size // page
    for first in range(0, pages, batch):
        many = min(batch, pages - first)
        data = physical.ram.read_at(begin.plus(first * stride), (many - 1) * stride + page)
        heads = data[::stride]  # the first byte of each page
        at = heads.find(_HEAD[0])
        while at >= 0:
            start = at * stride
            if data.startswith(_HEAD, start) and data.startswith(_NAME, start + _NAME_AT):
                yield extent.address + (first + at) * page
            at = heads.find(_HEAD[0], at + 1)


def _note(space: Physical | Space, address: int) -> VmCoreInfo | None:
    try:
        head = space.read(address, _HEADER)
        size = int.from_bytes(head[4:8], "little")
        if not 0 < size <= _MOST:
            return None
        text = space.read(address + _HEADER, size)
    except (AddressError, StreamError):
        return None
    return VmCoreInfo(address, text) if text.startswith(b"OSRELEASE=") else None


def proved(note: VmCoreInfo, virtual: Space) -> bool:
    """Whether the page tables map the kernel's image as the note says."""
    agreed = False
    for name in _SYMBOLS:
        symbol = note.symbol(name)
        if symbol is None or symbol < _START_KERNEL_MAP:
            continue
        try:
            place = virtual.translate(symbol)
        except (AddressError, StreamError):
            return False
        if place != symbol - _START_KERNEL_MAP + note.phys_base:
            return False
        agreed = True
    return agreed


def find(space: Physical | Space, virtual: Space, kernel: Space | None = None) -> VmCoreInfo | None:
    """The note of the kernel whose page tables make ``virtual``; None if there is none.

    :param space: its physical memory.
    :param kernel: the same with the kernel's half of a pair of tables (PTI).
    """
    for note in candidates(space):
        if proved(note, virtual) or (kernel is not None and proved(note, kernel)):
            return note
    return None


def read_note(path: str) -> VmCoreInfo:
    """Read a note from a file: its text, as makedumpfile -g writes it, or with its header.

    :raises PathError: the file cannot be read, or is not a note.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_FILE + 1)
    except OSError as error:
        raise PathError(f"cannot read '{path}': {error.strerror}") from error
    at = data.find(b"OSRELEASE=")
    if at < 0 or len(data) > _MOST_FILE:
        raise PathError(f"'{path}' is not VMCOREINFO: it has no OSRELEASE=, or is too long")
    return VmCoreInfo(0, data[at:].rstrip(b"\0"))
