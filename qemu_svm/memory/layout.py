"""Where RAM lies in the guest's physical address space, by evidence.

A stream has RAM as blocks, largest first, and nothing on the wire says at which
address one begins (but with x-ignore-shared).  What says it: the CMOS (how much is
below and above 4 GiB), the SRAT (which NUMA node has what), PCI BARs, the PAM
registers, a virtio-mem device's own section.  Where none of these does, the rules
of the machine type are left; every range says which it was.

Source: QEMU ``hw/i386/pc_piix.c``, ``pc_q35.c``, ``pc.c``, ``microvm.c``,
``x86.c`` (``x86_bios_rom_init``), ``pc_sysfw.c``, ``hw/mem/memory-device.c``
(5.2 to 10.2).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations, pairwise
from typing import NamedTuple

from qemu_svm.errors import StreamError
from qemu_svm.limits import GIB, KIB, MIB
from qemu_svm.machine import Machine
from qemu_svm.memory import evidence
from qemu_svm.memory.evidence import Affinity, PciDevice
from qemu_svm.stream import RamBlock

_4G = 4 * GIB
_1T = 1 << 40
_HT_HOLE = 0xFD_0000_0000
_ISA = 1 * MIB
_SMRAM = (0xA0000, 0xC0000)
_PAM = (*range(0xC0000, 0xF0000, 0x4000), 0xF0000, 0x100000)
_GAP = 0x60000  # of node 0 in the SRAT: 0xa0000 to 0xfffff
_ROUNDING = 64 * KIB  # of the CMOS
_DIMM_ALIGN = 2 * MIB
_LABELS = 16 * MIB  # of an NVDIMM, at most
_MAIN_NAMES = ("pc.ram", "microvm.ram", "xen.ram")
_FIRMWARE = ("pc.bios", "pc.rom", "isa-bios", "system.flash0", "system.flash1", "tpm-ppi")
_BARS = {"vga.vram": 0, "bochs-display-vram": 0, "qxl.vram": 1, "qxl.vrom": 2, "vmsvga.fifo": 2}
_VMWARE = b"\xad\x15"
_TPM_PPI = 0xFED4_5000
_RESET = b"\xea\x5b\xe0\x00\xf0"  # SeaBIOS' jump at the reset vector
_MOST_CANDIDATES = 12
_VERSION = re.compile(r"-(\d{1,9})\.(\d{1,9})")

Content = Callable[[str, int, int], bytes]
"""Reads a RAM block: its name, offset, size.  Raises StreamError where it is damaged."""


class Use(StrEnum):
    """What a range of physical addresses is."""

    RAM = "ram"
    ROM = "rom"
    FLASH = "flash"
    VIDEO = "video"
    DIMM = "dimm"
    VIRTIO_MEM = "virtio-mem"
    DEVICE = "device"


class Range(NamedTuple):
    """Part of a RAM block at its guest-physical address.

    :param start: guest-physical address; ``size`` in bytes.
    :param block: index in :attr:`~qemu_svm.machine.Machine.blocks`.
    :param offset: of the range in the block.
    :param reason: what says that it is there.
    """

    start: int
    size: int
    block: int
    offset: int
    use: Use
    reason: str

    @property
    def end(self) -> int:
        """First address after the range."""
        return self.start + self.size


class Layout(NamedTuple):
    """A machine's physical address space, as far as RAM blocks are in it.

    :param ranges: in order of addresses, without overlaps.
    :param smram: what SMM sees in place of :attr:`ranges`.
    :param unplaced: blocks that have no address, with the reason.
    :param assumptions: in words; empty if everything is by evidence.
    """

    ranges: tuple[Range, ...]
    smram: tuple[Range, ...] = ()
    unplaced: tuple[tuple[int, str], ...] = ()
    assumptions: tuple[str, ...] = ()


class Split(NamedTuple):
    """How main memory is divided at the hole under 4 GiB; sizes in bytes.

    :param base: address of the high part.
    """

    low: int
    high: int
    base: int
    reason: str
    assumed: bool = False

    @property
    def total(self) -> int:
        """Size of main memory."""
        return self.low + self.high


def ram_ranges(machine: Machine) -> list[tuple[int, int]]:
    """Ranges ``(start, end)`` of main memory in guest-physical addresses.

    Needs no content of RAM: whichever blocks main memory consists of, their sizes and
    the CMOS are enough.
    """
    if not machine.blocks:
        return []
    laid = machine.stream.laid
    if laid is not None:
        pairs = zip(laid.addresses, machine.blocks, strict=True)
        return [(address, address + block.used_length) for address, block in pairs]
    split = _split(machine, [])
    found = [(0, split.low)]
    return [*found, (split.base, split.base + split.high)] if split.high else found


def backed(machine: Machine, address: int, size: int) -> bool:
    """Whether all of ``size`` bytes at ``address`` are main memory."""
    return any(start <= address and address + size <= end for start, end in ram_ranges(machine))


def backing(machine: Machine) -> Callable[[int, int], bool]:
    """What :func:`backed` says, for many questions; yes where there are no blocks at all."""
    ranges = ram_ranges(machine)
    blocks = bool(machine.blocks)

    def exists(address: int, size: int) -> bool:
        return not blocks or any(a <= address and address + size <= b for a, b in ranges)

    return exists


def is_device(name: str) -> bool:
    """Whether a block of that name belongs to firmware or a device, not to main memory."""
    return (
        name in _FIRMWARE
        or name in _BARS
        or name.startswith("/rom@")
        or ("/" in name and not name.startswith("/objects/"))
    )


def layout(
    machine: Machine,
    content: Content | None = None,
    addresses: Sequence[int | None] = (),
) -> Layout:
    """Place the RAM blocks of a machine.

    :param content: reads RAM, for the SRAT and to tell nodes of equal size apart;
        without it, they are taken in the order of the blocks.
    :param addresses: of each block, where the stream has it (x-ignore-shared).
    """
    if not machine.blocks:
        return Layout((), assumptions=("the stream lists no RAM blocks",))
    laid = machine.stream.laid
    if laid is not None:
        return Layout(
            tuple(
                Range(laid.addresses[at], block.used_length, at, 0, Use.RAM, laid.reason)
                for at, block in enumerate(machine.blocks)
            )
        )
    return _Placing(machine, content, addresses).layout()


# Main memory: how much is below 4 GiB.


def _candidates(machine: Machine) -> list[int]:
    # Blocks that may be main memory or a dimm.
    found = [at for at, block in enumerate(machine.blocks) if not is_device(block.name)]
    return found or [max(range(len(machine.blocks)), key=lambda at: _size(machine, at))]


def _size(machine: Machine, block: int) -> int:
    return machine.blocks[block].used_length


def _split(machine: Machine, nodes: list[Affinity]) -> Split:
    sizes = [_size(machine, at) for at in _candidates(machine)]
    plugged = [one for one in nodes if one.main]
    low = sum(one.size for one in plugged if one.base < _4G)
    if plugged and low + _GAP >= _ISA:
        above = [one for one in plugged if one.base >= _4G]
        base = min((one.base for one in above), default=_4G)
        return Split(low + _GAP, sum(one.size for one in above), base, "SRAT")
    found = evidence.cmos(machine)
    if found is not None:
        rest = _remainder(sizes, found.low + found.high)
        if rest is not None:
            low, high = (found.low, found.high + rest) if found.high else (found.low + rest, 0)
            base, reason = _high_base(machine, high, nodes)
            return Split(low, high, base, f"CMOS{reason}")
    return _by_machine(machine, nodes)


def _remainder(sizes: Sequence[int], total: int) -> int | None:
    # By how much the blocks that make up main memory are more than the CMOS says.
    many = [sizes] if len(sizes) > _MOST_CANDIDATES else _subsets(sizes)
    fits = [sum(chosen) - total for chosen in many if 0 <= sum(chosen) - total < _ROUNDING]
    return min(fits) if fits else None


def _subsets(sizes: Sequence[int]) -> Iterable[Sequence[int]]:
    for count in range(1, len(sizes) + 1):
        yield from combinations(sizes, count)


def _by_machine(machine: Machine, nodes: list[Affinity]) -> Split:
    main = _named(machine)
    size = _size(machine, main)
    low = min(size, _low_end(machine.name or "", size))
    base, _ = _high_base(machine, size - low, nodes)
    return Split(low, size - low, base, f"the rules of {machine.name or 'pc'}", assumed=True)


def _named(machine: Machine) -> int:
    # The block of main memory where nothing but names and sizes says it.
    blocks = machine.blocks
    for name in (*_MAIN_NAMES, "ram-node0", "mem", "ram"):
        for at, block in enumerate(blocks):
            if block.name == name:
                return at
    return max(_candidates(machine), key=lambda at: _size(machine, at))


def _low_end(name: str, size: int) -> int:
    # RAM below 4 GiB without max-ram-below-4g.
    if name.startswith("isapc") or not name.startswith(("pc", "microvm", "xen")):
        return size if name else min(size, 3 * GIB)  # not a PC: memory starts at 0
    if name.startswith("xen"):
        return 0xF000_0000
    if "q35" in name:
        return 0xB000_0000 if size < 0xB000_0000 else 2 * GIB
    if "microvm" in name:
        return 3 * GIB
    return 0xE000_0000 if size < 0xE000_0000 or _version(name) < (2, 0) else 3 * GIB


def _version(name: str) -> tuple[int, int]:
    found = _VERSION.search(name)
    return (int(found[1]), int(found[2])) if found else (99, 0)


def _high_base(machine: Machine, high: int, nodes: list[Affinity]) -> tuple[int, str]:
    # Where memory above the hole begins: 4 GiB, or 1 TiB with the HyperTransport hole
    # in the way (pc.c, pc_memory_init: enforce_amd_1tb_hole; pc_pci_hole64_start).
    name = machine.name or ""
    hotplug = max((one.base + one.size for one in nodes if one.hotplug), default=0)
    hole = 32 * GIB if "q35" in name else 2 * GIB
    top = _up(max(_4G + high, hotplug if hotplug < _1T else 0), GIB) + hole
    if not high or top <= _HT_HOLE or not name.startswith("pc-") or _version(name) < (7, 1):
        return _4G, ""
    if not _may_be_amd(machine):
        return _4G, ""
    return _1T, "; moved to 1 TiB, past the HyperTransport hole"


def _may_be_amd(machine: Machine) -> bool:
    return all(vcpu.nested is None or vcpu.nested.is_svm for vcpu in machine.vcpus)


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


# All blocks.


@dataclass
class _Placing:
    machine: Machine
    content: Content | None
    addresses: Sequence[int | None]
    ranges: list[Range] = field(default_factory=list)
    smram: list[Range] = field(default_factory=list)
    unplaced: dict[int, str] = field(default_factory=dict)
    assumptions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.devices = list(evidence.pci_devices(self.machine))
        self.blocks: tuple[RamBlock, ...] = self.machine.blocks
        self.index = {block.name: at for at, block in reversed(list(enumerate(self.blocks)))}
        self.nodes = evidence.srat(self._acpi())
        self.split = _split(self.machine, self.nodes)

    def layout(self) -> Layout:
        main = self._main_blocks()
        self._main(main)
        self._legacy()
        self._firmware()
        self._bars()
        self._pluggable([at for at in _candidates(self.machine) if at not in main])
        self._on_the_wire()
        placed = {one.block for one in self.ranges} | {one.block for one in self.smram}
        for at, block in enumerate(self.blocks):
            if at not in placed:
                reason = (
                    "a file of fw_cfg" if block.name.startswith("/rom@") else "no address known"
                )
                self.unplaced.setdefault(at, reason)
        return Layout(
            tuple(_merged(self.ranges)),
            tuple(_merged(self.smram)),
            tuple(sorted(self.unplaced.items())),
            tuple(self.assumptions),
        )

    def _read(self, block: int, offset: int, size: int) -> bytes:
        if self.content is None:
            return b""
        try:
            return self.content(self.blocks[block].name, offset, size)
        except StreamError:
            return b""

    def _acpi(self) -> bytes:
        at = self.index.get("/rom@etc/acpi/tables")
        if at is None:
            return b""
        return self._read(at, 0, min(self.blocks[at].used_length, 4 * MIB))

    # Main memory.

    def _main_blocks(self) -> list[int]:
        # In the order of their addresses.
        candidates, total = _candidates(self.machine), self.split.total
        by_node = self._nodes_to_blocks(candidates)
        if by_node:
            return by_node
        if self.split.assumed:
            return [_named(self.machine)]
        single = [at for at in candidates if self._fits([at], total)]
        if single:
            named = [at for at in single if self.blocks[at].name in _MAIN_NAMES]
            if not named and len(single) > 1:
                named = self._with_firmware(single)
                if not named:
                    self.assumptions.append(
                        "several blocks have the size of main memory; the first is used"
                    )
            return (named or single)[:1]
        chosen = self._several(candidates, total)
        if chosen and all(re.fullmatch(r"ram-node\d+", self.blocks[at].name) for at in chosen):
            return sorted(chosen, key=lambda at: int(self.blocks[at].name[8:]))
        if chosen:
            first = self._with_firmware(chosen)[:1] or chosen[:1]
            self.assumptions.append("no SRAT gives the order of the memory backends")
            return [*first, *(at for at in chosen if at not in first)]
        return [_named(self.machine)]

    def _fits(self, blocks: Sequence[int], total: int) -> bool:
        return sum(_size(self.machine, at) for at in blocks) == total

    def _several(self, candidates: list[int], total: int) -> list[int]:
        if self._fits(candidates, total) or len(candidates) > _MOST_CANDIDATES:
            return candidates if self._fits(candidates, total) else []
        for count in range(2, len(candidates)):
            for chosen in combinations(candidates, count):
                if self._fits(chosen, total):
                    return list(chosen)
        return []

    def _with_firmware(self, blocks: Sequence[int]) -> list[int]:
        # Those that have SeaBIOS' copy of itself below 1 MiB, else vectors at 0.
        found = [at for at in blocks if self._read(at, 0xFFFF0, 5) == _RESET]
        return found or [at for at in blocks if self._read(at, 0, 16).strip(b"\0")]

    def _nodes_to_blocks(self, candidates: list[int]) -> list[int]:
        sizes: dict[int, int] = {}
        bases: dict[int, int] = {}
        for one in self.nodes:
            if one.main:
                sizes[one.node] = sizes.get(one.node, 0) + one.size
                bases[one.node] = min(bases.get(one.node, one.base), one.base)
        order = sorted(sizes, key=lambda node: bases[node])
        left, chosen = list(candidates), []
        for number, node in enumerate(order):
            size = sizes[node] + (0 if number else _GAP)
            equal = [at for at in left if _size(self.machine, at) == size]
            if not equal:
                return []
            if not number and len(equal) > 1:
                named = [at for at in equal if self.blocks[at].name in _MAIN_NAMES]
                equal = named or self._with_firmware(equal) or equal
            elif len(equal) > 1 and len({sizes[other] for other in order[number:]}) < len(
                order[number:]
            ):
                self._say("nodes of equal size are assigned in the order of their blocks")
            left.remove(equal[0])
            chosen.append(equal[0])
        return chosen

    def _say(self, words: str) -> None:
        if words not in self.assumptions:
            self.assumptions.append(words)

    def _main(self, blocks: list[int]) -> None:
        if self.split.assumed:
            self._say(
                "the stream does not say where RAM below 4 GiB ends; assumed by "
                f"{self.split.reason}"
            )
        place, reason = 0, self.split.reason
        for block in blocks:
            size, offset = _size(self.machine, block), 0
            while offset < size:
                inside = place < self.split.low
                start = place if inside else self.split.base + place - self.split.low
                part = min(size - offset, self.split.low - place) if inside else size - offset
                self.ranges.append(Range(start, part, block, offset, Use.RAM, reason))
                place, offset = place + part, offset + part

    # Below 1 MiB.

    def _legacy(self) -> None:
        bridge = evidence.host_bridge(self.devices)
        if bridge is not None:
            low = [one for one in self.ranges if one.start == 0]
            if low and not bridge.smram_open:
                self.smram = [
                    one._replace(reason="SMRAM: the memory under 0xa0000-0xbffff")
                    for one in _clip(low, *_SMRAM)
                ]
            if any(device.display for device in self.devices) and not bridge.smram_open:
                self.ranges = _without(self.ranges, *_SMRAM)
            else:
                self.smram = []
            for number, readable in enumerate(bridge.readable):
                if not readable:
                    reason = "PAM: reads go to ROM"
                    self._rom_window(_PAM[number], _PAM[number + 1], reason)
        elif "microvm" in (self.machine.name or ""):
            self._legacy_bios("the machine maps the end of its firmware here")
        elif (self.machine.name or "").startswith("isapc"):
            for number in range(len(_PAM) - 1):
                self._rom_window(_PAM[number], _PAM[number + 1], "the machine has no PAM registers")

    def _rom_window(self, start: int, end: int, reason: str) -> None:
        # ROM in place of RAM.
        self.ranges = _without(self.ranges, start, end)
        rom = self.index.get("pc.rom")
        found: list[Range] = []
        if rom is not None:
            size = _size(self.machine, rom)
            found.append(Range(0xC0000, min(size, 0x20000), rom, 0, Use.ROM, reason))
        found += self._bios_alias(reason)
        self.ranges += _clip(found, start, end)

    def _bios_alias(self, reason: str) -> list[Range]:
        for name in ("isa-bios", "pc.bios", "system.flash0"):
            block = self.index.get(name)
            if block is not None:
                size = _size(self.machine, block)
                part = min(size, 128 * KIB)
                return [Range(_ISA - part, part, block, size - part, Use.ROM, reason)]
        return []

    def _legacy_bios(self, reason: str) -> None:
        for one in self._bios_alias(reason):
            self.ranges = _without(self.ranges, one.start, one.end)
            self.ranges.append(one)

    # Firmware below 4 GiB, BARs, dimms.

    def _firmware(self) -> None:
        top = _4G
        for name in ("pc.bios", "system.flash0", "system.flash1"):
            block = self.index.get(name)
            if block is None:
                continue
            size = _size(self.machine, block)
            use = Use.ROM if name == "pc.bios" else Use.FLASH
            self._add(Range(top - size, size, block, 0, use, "firmware ends at 4 GiB"))
            if use is Use.FLASH:
                top -= size
        block = self.index.get("tpm-ppi")
        if block is not None:
            size = _size(self.machine, block)
            self._add(Range(_TPM_PPI, size, block, 0, Use.DEVICE, "the TPM's fixed address"))

    def _bars(self) -> None:
        for at, block in enumerate(self.blocks):
            path, _, name = block.name.rpartition("/")
            if name in _BARS:
                number, use = _BARS[name], Use.VIDEO
            elif name.endswith(".rom") and path.startswith("0000:"):
                number, use = 6, Use.ROM
            else:
                continue
            device = self._device(path, number)
            bar = None
            if device is not None:
                if name == "vga.vram" and device.config[:2] == _VMWARE:
                    number = 1
                bar = device.bar(number)
            if device is None or bar is None:
                self.unplaced[at] = "its PCI BAR is not enabled"
            else:
                reason = "expansion ROM BAR" if number == 6 else f"BAR {number}"
                self._add(Range(bar, block.used_length, at, 0, use, f"{reason} of {device.name}"))

    def _device(self, path: str, number: int) -> PciDevice | None:
        if path:
            return next((one for one in self.devices if one.path == path), None)
        shown = [one for one in self.devices if one.config[0x0B] == 3]
        return shown[0] if shown and number != 6 else None

    def _pluggable(self, blocks: list[int]) -> None:
        hotplug = [one for one in self.nodes if one.hotplug]
        after = max((one.end for one in self.ranges if one.use is Use.RAM), default=0)
        base = hotplug[0].base if hotplug else _up(max(_4G, after), GIB)
        virtio = self._virtio_mem()
        found = [*virtio, *self._nvdimms(blocks)]
        left = [at for at in blocks if all(one.block != at for one in found)]
        offsets = self._offsets(left)
        if offsets:
            reason = "its offset among the dimms, on the wire"
            found += [
                Range(base + offset, _size(self.machine, at), at, 0, Use.DIMM, reason)
                for at, offset in zip(left, offsets, strict=True)
            ]
            left = []
        reason = "where QEMU plugs in a dimm by default" + (" (SRAT)" if hotplug else "")
        for at in self._plug_order(left):
            size = _size(self.machine, at)
            found.append(Range(_gap(found, base, size), size, at, 0, Use.DIMM, reason))
        for one in found:
            self._add(one)

    def _nvdimms(self, blocks: Sequence[int]) -> list[Range]:
        # The SRAT has those; a label area at a block's end is not mapped.
        found: list[Range] = []
        for one in self.nodes:
            used = {other.block for other in found}
            fits = [
                (rest, at) for at in blocks
                if at not in used and 0 <= (rest := _size(self.machine, at) - one.size) <= _LABELS
            ]  # fmt: skip
            if one.persistent and fits:
                _, at = min(fits)
                found.append(Range(one.base, one.size, at, 0, Use.DIMM, "SRAT: an NVDIMM"))
        return found

    def _offsets(self, blocks: Sequence[int]) -> list[int]:
        # With x-ignore-shared the stream has a dimm's offset in the region for dimms.  Offsets
        # that overlap are not of dimms; then none is returned.
        found = [self.addresses[at] if at < len(self.addresses) else None for at in blocks]
        known = [one for one in found if one is not None]
        spans = sorted(
            (one, one + _size(self.machine, at)) for one, at in zip(known, blocks, strict=False)
        )
        apart = all(one[1] <= other[0] for one, other in pairwise(spans))
        return known if len(known) == len(blocks) and apart else []

    def _plug_order(self, blocks: list[int]) -> list[int]:
        # Blocks of equal size are in the order of creation, others in that of their size.
        if len({_size(self.machine, at) for at in blocks}) < 2:
            return blocks
        names = [re.fullmatch(r"(.*?)(\d+)", self.blocks[at].name) for at in blocks]
        numbered = [one for one in names if one is not None]
        if len(numbered) == len(blocks) and len({one[1] for one in numbered}) == 1:
            self._say("the dimms are taken in the order of the numbers in their names")
            numbers = [int(one[2]) for one in numbered]
            return [at for _, at in sorted(zip(numbers, blocks, strict=True))]
        self._say("the stream does not say in which order the dimms were plugged in")
        return blocks

    def _virtio_mem(self) -> list[Range]:
        # What is plugged in; the rest of the region has no memory.
        found: list[Range] = []
        for device in evidence.virtio_mem(self.machine):
            reason = "the device's section"
            for offset, size in device.plugged:
                start, block = device.address + offset, self.index[device.block]
                found.append(Range(start, size, block, offset, Use.VIRTIO_MEM, reason))
            self.unplaced.setdefault(self.index[device.block], "nothing of it is plugged in")
        return found

    def _on_the_wire(self) -> None:
        # x-ignore-shared: an address for each block, 0 where the region is in another one.
        for at, address in enumerate(self.addresses):
            if address and all(one.block != at for one in (*self.ranges, *self.smram)):
                size = _size(self.machine, at)
                name = self.blocks[at].name
                use = Use.DEVICE if is_device(name) else Use.DIMM
                if name != "pc.rom":  # that one is shown as the PAM registers say
                    self._add(Range(address, size, at, 0, use, "the address on the wire"))

    def _add(self, one: Range) -> None:
        # Under what is there already: RAM comes before BARs and firmware.
        free = [one]
        for other in self.ranges:
            free = _without(free, other.start, other.end)
        self.ranges += free


def _gap(ranges: Iterable[Range], base: int, size: int) -> int:
    # The first address from ``base`` on where so much fits between the others.
    place = base
    for one in sorted(ranges, key=lambda each: each.start):
        if one.start < place + size and place < one.end:
            place = _up(one.end, _DIMM_ALIGN)
    return place


def _clip(ranges: Iterable[Range], start: int, end: int) -> list[Range]:
    found: list[Range] = []
    for one in ranges:
        first, last = max(one.start, start), min(one.end, end)
        if first < last:
            offset = one.offset + first - one.start
            found.append(one._replace(start=first, size=last - first, offset=offset))
    return found


def _without(ranges: Iterable[Range], start: int, end: int) -> list[Range]:
    found: list[Range] = []
    for one in ranges:
        found += _clip([one], 0, start) if one.start < start else []
        found += _clip([one], end, 1 << 64) if one.end > end else []
    return found


def _merged(ranges: Iterable[Range]) -> list[Range]:
    # In order; parts of one block that follow one another become one.
    found: list[Range] = []
    for one in sorted(ranges, key=lambda each: each.start):
        last = found[-1] if found else None
        if (
            last is not None
            and (last.block, last.use, last.reason) == (one.block, one.use, one.reason)
            and last.end == one.start
            and last.offset + last.size == one.offset
        ):
            found[-1] = last._replace(size=last.size + one.size)
        else:
            found.append(one)
    return found
