"""Device state that says where RAM lies: CMOS, PCI configuration, the ACPI SRAT.

Source: QEMU ``hw/i386/pc.c`` (``pc_cmos_init``), ``hw/i386/microvm.c``
(``microvm_set_rtc``), ``hw/pci-host/i440fx.c``, ``q35.c`` and ``pam.c``,
``hw/i386/acpi-build.c`` (``build_srat``); ACPI 6.4, 5.2.16.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from qemu_svm.errors import StreamError
from qemu_svm.limits import KIB, MIB
from qemu_svm.machine import Machine
from qemu_svm.stream import RamBlock, Record, Value

_CMOS_SECTION = "mc146818rtc"
_CMOS_LEAST = 0x5E
_UNIT = 64 * KIB
_PCI_CONFIG = frozenset({"pci config", "pci config le"})
_CLASS_VGA = 0x0300
_HOST_BRIDGES = {"I440FX": (0x59, 0x72), "mch": (0x90, 0x9D)}
_SRAT = b"SRAT"
_SRAT_HEADER = 48
_MEMORY_AFFINITY = 1
_ENABLED, _HOTPLUGGABLE, _NON_VOLATILE = 1, 2, 4
_MOST_TABLE = 2 * MIB


class Cmos(NamedTuple):
    """Sizes of RAM as the CMOS has them, in bytes, rounded down to 64 KiB.

    :param low: below 4 GiB.
    :param high: above.
    """

    low: int
    high: int


class PciDevice(NamedTuple):
    """Configuration space of one PCI function.

    :param path: the start of the section's name, ``0000:00:02.0``; "" if it has none.
    :param name: the rest, ``vga``.
    """

    path: str
    name: str
    config: bytes

    @property
    def display(self) -> bool:
        """Whether it is a VGA controller, with the legacy window at 0xa0000."""
        return int.from_bytes(self.config[0x0A:0x0C], "little") == _CLASS_VGA

    def bar(self, number: int) -> int | None:
        """Address of a memory BAR; None if it is not decoded.

        :param number: 0 to 5, 6 for the expansion ROM.
        """
        if not self.config[4] & 2:
            return None
        at = 0x30 if number == 6 else 0x10 + 4 * number
        value = int.from_bytes(self.config[at : at + 4], "little")
        if number == 6:
            return value & 0xFFFF_F800 if value & 1 and value & 0xFFFF_F800 else None
        if value & 1:
            return None
        if value >> 1 & 3 == 2 and number < 5:
            value |= int.from_bytes(self.config[at + 4 : at + 8], "little") << 32
        return value & ~0xF or None


class Affinity(NamedTuple):
    """A memory entry of the SRAT.

    :param hotplug: the region for dimms, of which nothing need be plugged in.
    :param persistent: an NVDIMM.
    """

    node: int
    base: int
    size: int
    hotplug: bool
    persistent: bool = False

    @property
    def main(self) -> bool:
        """Whether it is part of main memory."""
        return not (self.hotplug or self.persistent)


def section_values(machine: Machine, record: Record) -> Value | None:
    """Values of a device section; None if it cannot be decoded."""
    try:
        return machine.stream.values(record)
    except StreamError:
        return None


def cmos(machine: Machine) -> Cmos | None:
    """RAM sizes out of the real-time clock's CMOS; None if the machine has none."""
    for record in machine.stream.sections():
        if record.name == _CMOS_SECTION:
            values = section_values(machine, record)
            field = values.child("cmos_data") if values is not None else None
            data = field.value if field is not None else None
            if isinstance(data, bytes) and len(data) >= _CMOS_LEAST:
                return _sizes(data)
    return None


def _sizes(data: bytes) -> Cmos:
    above_16m = int.from_bytes(data[0x34:0x36], "little")
    above_1m = int.from_bytes(data[0x30:0x32], "little")
    low = 16 * MIB + above_16m * _UNIT if above_16m else MIB + above_1m * KIB
    return Cmos(low, int.from_bytes(data[0x5B:0x5E], "little") * _UNIT)


def pci_devices(machine: Machine) -> Iterator[PciDevice]:
    """Every PCI function whose configuration space can be decoded."""
    for record in machine.stream.sections():
        try:
            value = machine.stream.first_value(record, _PCI_CONFIG)
        except StreamError:
            continue
        data = value.value if value is not None else None
        if isinstance(data, bytes) and len(data) >= 0x40:
            path, slash, name = (record.name or "").rpartition("/")
            yield PciDevice(path if slash else "", name, data)


class HostBridge(NamedTuple):
    """What of 0xa0000 to 0xfffff reads as RAM.

    :param readable: for each 16 KiB from 0xc0000 to 0xeffff, and last for 0xf0000 to
        0xfffff, whether reads go to RAM rather than to ROM.
    :param smram_open: SMRAM is visible at 0xa0000 without SMM (``D_OPEN``).
    """

    readable: tuple[bool, ...]
    smram_open: bool


def host_bridge(devices: list[PciDevice]) -> HostBridge | None:
    """The PAM and SMRAM registers; None if there is no host bridge that has them."""
    for device in devices:
        if device.name in _HOST_BRIDGES:
            pam, smram = _HOST_BRIDGES[device.name]
            registers = device.config[pam : pam + 7]
            nibbles = [nibble for one in registers[1:] for nibble in (one & 15, one >> 4)]
            readable = tuple(bool(nibble & 1) for nibble in (*nibbles, registers[0] >> 4))
            return HostBridge(readable, bool(device.config[smram] & 0x40))
    return None


def srat(tables: bytes) -> list[Affinity]:
    """Memory entries of the SRAT among ACPI tables; empty if there is none.

    The checksum is not looked at: the firmware fills it in, in a copy of its own.
    """
    at = tables.find(_SRAT)
    while at >= 0:
        found = _affinities(tables[at:])
        if found:
            return found
        at = tables.find(_SRAT, at + 1)
    return []


def _affinities(table: bytes) -> list[Affinity]:
    size = int.from_bytes(table[4:8], "little")
    if not _SRAT_HEADER <= size <= min(len(table), _MOST_TABLE):
        return []
    found: list[Affinity] = []
    at = _SRAT_HEADER
    while at + 2 <= size:
        kind, length = table[at], table[at + 1]
        if length < 2 or at + length > size:
            return []
        if kind == _MEMORY_AFFINITY:
            if length != 40:
                return []
            node, base, many, flags = struct.unpack_from("<I2xQQ4xI", table, at + 2)
            if flags & _ENABLED and many:
                hotplug, persistent = bool(flags & _HOTPLUGGABLE), bool(flags & _NON_VOLATILE)
                found.append(Affinity(node, base, many, hotplug, persistent))
        at += length
    return found


class VirtioMem(NamedTuple):
    """A virtio-mem device and its region.

    :param block: name of its RAM block.
    :param plugged: what of the region has memory, ``(offset, size)``.
    """

    block: str
    address: int
    size: int
    plugged: tuple[tuple[int, int], ...]


def virtio_mem(machine: Machine) -> Iterator[VirtioMem]:
    """The virtio-mem devices, as far as their regions' addresses are found.

    From QEMU 8.1 on a section of its own has address and bitmap; before, they are in the
    device's section, which nothing describes: the region's size shows where.

    Source: QEMU ``hw/virtio/virtio-mem.c`` (``vmstate_virtio_mem_device``,
    ``vmstate_virtio_mem_device_early``).
    """
    for record in machine.stream.sections():
        path, _, name = (record.name or "").rpartition("/")
        for block in machine.blocks:
            if not block.name.startswith(path + "/") or block.name.endswith(".rom"):
                continue
            found = None
            if name == "virtio-mem-device-early":
                found = _described(machine, record, block)
            elif name == "virtio-mem":
                found = _undescribed(machine, record, block)
            if found is not None:
                yield found


def _described(machine: Machine, record: Record, block: RamBlock) -> VirtioMem | None:
    values = section_values(machine, record)
    if values is None:
        return None
    named = {key.rpartition(".")[2]: value.value for key, value in values.walk()}
    numbers = [named.get(key) for key in ("addr", "region_size", "block_size")]
    address, size, unit = (one if isinstance(one, int) else 0 for one in numbers)
    bitmap = named.get("bitmap")
    if size != block.used_length or not _good_unit(unit) or not isinstance(bitmap, bytes):
        return None
    return VirtioMem(block.name, address, size, _plugged(bitmap, unit))


def _undescribed(machine: Machine, record: Record, block: RamBlock) -> VirtioMem | None:
    if record.payload_size > _MOST_TABLE:
        return None
    data = machine.stream.source.read_at(record.payload, record.payload_size)
    mark = block.used_length.to_bytes(8, "big")
    at = data.find(mark, 8)
    while at >= 0:
        found = _at(data, at, block)
        if found is not None:
            return found
        at = data.find(mark, at + 1)
    return None


def _at(data: bytes, at: int, block: RamBlock) -> VirtioMem | None:
    # Address, region size (at ``at``), block size, node; usable, plugged and requested
    # size; the bitmap, which must have as many bits as are plugged.
    if at + 44 > len(data):
        return None
    address, size, unit, _, usable, plugged = struct.unpack_from(">QQQIQQ", data, at - 8)
    if not _good_unit(unit) or address % unit or not plugged <= usable <= size:
        return None
    words = -(-size // unit // 64)
    spans = _plugged(data[at + 44 : at + 44 + 8 * words], unit)
    if sum(many for _, many in spans) != plugged:
        return None
    return VirtioMem(block.name, address, size, spans)


def _good_unit(unit: int) -> bool:
    return unit >= 4096 and not unit & unit - 1


def _plugged(bitmap: bytes, unit: int) -> tuple[tuple[int, int], ...]:
    # Words of 64 bits; the spans of set bits in them.
    bits = 0
    for number, (word,) in enumerate(struct.iter_unpack(">Q", bitmap[: len(bitmap) & ~7])):
        bits |= word << 64 * number
    return tuple(_spans(bits, unit))


def _spans(bits: int, unit: int) -> Iterator[tuple[int, int]]:
    place = 0
    while bits:
        skip = (bits & -bits).bit_length() - 1
        bits >>= skip
        many = (~bits & bits + 1).bit_length() - 1
        yield (place + skip) * unit, many * unit
        bits >>= many
        place += skip + many
