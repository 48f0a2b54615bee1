"""PCI configuration space: the header, the capabilities, and what a byte belongs to.

All numbers are little-endian.  Every byte is in exactly one value: what no
capability claims is bytes.

Source: PCI Local Bus Specification 3.0, chapter 6 and appendices; PCI Express Base
Specification 3.0, chapter 7; VIRTIO 1.2, 4.1.4 (the vendor capabilities); AHCI 1.3.1,
chapter 2 (that of SATA); Linux ``include/uapi/linux/pci_regs.h`` for the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.machine.cursor import Cursor, group
from qemu_svm.stream.vmstate.values import Value
from qemu_svm.x86.bits import Bits

SIZES = (256, 4096)
"""Bytes of configuration space of conventional PCI and of PCI Express."""

COMMAND = Bits(
    {
        0: "IO", 1: "MEMORY", 2: "MASTER", 3: "SPECIAL", 4: "INVALIDATE", 5: "VGA_PALETTE",
        6: "PARITY", 7: "WAIT", 8: "SERR", 9: "FAST_BACK", 10: "INTX_DISABLE",
    }
)  # fmt: skip
STATUS = Bits(
    {
        3: "INTERRUPT", 4: "CAP_LIST", 5: "66MHZ", 6: "UDF", 7: "FAST_BACK", 8: "PARITY",
        11: "SIG_TARGET_ABORT", 12: "REC_TARGET_ABORT", 13: "REC_MASTER_ABORT",
        14: "SIG_SYSTEM_ERROR", 15: "DETECTED_PARITY",
    },
    ignore=3 << 9,
)  # fmt: skip

COMMAND_TYPE = "PCI command"
STATUS_TYPE = "PCI status"

_HEADER = """
    vendor_id:le16 device_id:le16 command:le16 status:le16 revision:u8 prog_if:u8 subclass:u8
    class:u8 cache_line_size:u8 latency_timer:u8 header_type:u8 bist:u8
"""
_DEVICE = """
    bar:le32*6 cardbus_cis:le32 subsystem_vendor_id:le16 subsystem_id:le16 rom_address:le32
    capabilities:u8 reserved:*7 interrupt_line:u8 interrupt_pin:u8 min_grant:u8 max_latency:u8
"""
_BRIDGE = """
    bar:le32*2 primary_bus:u8 secondary_bus:u8 subordinate_bus:u8 secondary_latency:u8 io_base:u8
    io_limit:u8 secondary_status:le16 memory_base:le16 memory_limit:le16 prefetch_base:le16
    prefetch_limit:le16 prefetch_base_high:le32 prefetch_limit_high:le32 io_base_high:le16
    io_limit_high:le16 capabilities:u8 reserved:*3 rom_address:le32 interrupt_line:u8
    interrupt_pin:u8 bridge_control:le16
"""
_HEADER_TYPES = {0: _DEVICE, 1: _BRIDGE}
_TYPES = {"command": COMMAND_TYPE, "status": STATUS_TYPE}
_HEADER_SIZE = 0x40
_CAPABILITIES = 0x34

MSIX = 0x11
_MSI = 0x05
_VENDOR = 0x09
_EXPRESS = 0x10

# Number: name, fields after the two bytes of every capability.
_CAPABILITY = {
    0x01: ("pm", "capability:le16 control:le16 bridge:u8 data:u8"),
    0x04: ("slot_id", "slots:u8 chassis:u8"),
    _MSI: ("msi", ""),
    _VENDOR: ("vendor", ""),
    0x0C: ("hot_plug", "select:u8 flags:u8 data:le32"),
    0x0D: ("subsystem", "reserved:*2 vendor_id:le16 device_id:le16"),
    _EXPRESS: ("express", ""),
    0x12: ("sata", "revision:le16 registers:le32"),
    MSIX: ("msix", "control:le16 table:le32 pba:le32"),
    0x13: ("advanced_features", "length:u8 capability:u8 control:u8 status:u8"),
}
_EXPRESS_FIELDS = """
    flags:le16 device_capability:le32 device_control:le16 device_status:le16
    link_capability:le32 link_control:le16 link_status:le16
    slot_capability:le32 slot_control:le16 slot_status:le16
    root_control:le16 root_capability:le16 root_status:le32
"""
_EXPRESS_MORE = """
    device_capability_2:le32 device_control_2:le16 device_status_2:le16
    link_capability_2:le32 link_control_2:le16 link_status_2:le16
    slot_capability_2:le32 slot_control_2:le16 slot_status_2:le16
"""
_VIRTIO = {1: "common", 2: "notify", 3: "isr", 4: "device", 5: "pci", 8: "shared_memory"}
_EXTENDED = {
    0x0001: "aer", 0x0003: "serial", 0x000D: "acs", 0x000E: "ari", 0x000F: "ats",
    0x0010: "sriov", 0x0013: "pri", 0x001B: "pasid", 0x0023: "dvsec",
}  # fmt: skip


def config_space(data: bytes, offset: int) -> tuple[Value, ...]:
    """Read a configuration space of 256 or 4096 bytes.

    :param offset: of its first byte in the stream.
    """
    found = _header(data, offset)
    at = _HEADER_SIZE
    starts = dict(_chain(data))
    ends = sorted(starts) + [SIZES[0]]
    for place in sorted(starts):
        if place < at:
            continue
        found += _gap(data, offset, at, place)
        limit = min(end for end in ends if end > place)
        value = _capability(data, offset, place, limit, starts[place])
        found.append(value)
        at = value.end - offset
    found += _gap(data, offset, at, SIZES[0])
    if len(data) > SIZES[0]:
        found += _extended(data, offset)
    return tuple(_distinct(found))


def capabilities(data: bytes) -> dict[int, int]:
    """Offsets of capabilities by number; of several, the first."""
    found: dict[int, int] = {}
    for place, number in _chain(data):
        found.setdefault(number, place)
    return found


def register_at(data: bytes, index: int) -> str:
    """Name the register that byte ``index`` belongs to; empty outside the space."""
    for value in config_space(data, 0):
        if value.offset <= index < value.end:
            inner = next((c for c in value.children if c.offset <= index < c.end), None)
            return value.name if inner is None else f"{value.name}.{inner.name}"
    return ""


def _header(data: bytes, offset: int) -> list[Value]:
    cursor = Cursor(data, offset, "PCI device")
    found = cursor.rows(_HEADER, _TYPES)
    rest = _HEADER_TYPES.get(data[0x0E] & 0x7F)
    if rest is None:
        return [*found, cursor.bytes("rest", _HEADER_SIZE - cursor.at)]
    return found + cursor.rows(rest, {"secondary_status": STATUS_TYPE})


def _chain(data: bytes) -> Iterator[tuple[int, int]]:
    # Offset and number of each capability; ends at the first that leads back.
    place, seen = data[_CAPABILITIES] & ~3, set[int]()
    while _HEADER_SIZE <= place < SIZES[0] - 1 and place not in seen:
        seen.add(place)
        yield place, data[place]
        place = data[place + 1] & ~3


def _gap(data: bytes, offset: int, start: int, end: int) -> list[Value]:
    if start >= end:
        return []
    return [Value(f"at_{start:#x}", "buffer", offset + start, end - start, data[start:end])]


def _capability(data: bytes, offset: int, place: int, limit: int, number: int) -> Value:
    # ``limit``: where it ends at the latest.
    name, fields = _CAPABILITY.get(number, (f"capability_{number:#x}", ""))
    cursor = Cursor(data[:limit], offset, "PCI capability", place)
    members = cursor.rows("cap_id:u8 cap_next:u8")
    if number == _MSI and cursor.left >= 2:
        control = int.from_bytes(data[place + 2 : place + 4], "little")
        fields = "control:le16 address:le32" + " address_high:le32" * (control >> 7 & 1)
        fields += " data:le16" + " reserved:*2 mask:le32 pending:le32" * (control >> 8 & 1)
    elif number == _EXPRESS:
        fields = _EXPRESS_FIELDS + _EXPRESS_MORE * (data[place + 2] & 0xF > 1)
    elif number == _VENDOR and cursor.left >= 2:
        name, fields = _vendor(data, place)
    if fields and _size(fields) <= cursor.left:
        members += cursor.rows(fields)
    return group(name, f"PCI capability at {place:#x}", offset + place, members)


def _vendor(data: bytes, place: int) -> tuple[str, str]:
    length, kind = data[place + 2], data[place + 3]
    if data[:2] == b"\xf4\x1a" and kind in _VIRTIO and length >= 16:
        fields = "length:u8 type:u8 bar:u8 id:u8 padding:*2 offset:le32 size:le32"
        more = length - 16
        if kind == 2 and more == 4:
            fields += " multiplier:le32"
        elif more:
            fields += f" data:*{more}"
        return f"virtio_{_VIRTIO[kind]}", fields
    return "vendor", f"length:u8 data:*{max(0, length - 3)}"


def _size(fields: str) -> int:
    sizes = {"u8": 1, "le16": 2, "le32": 4}
    total = 0
    for row in fields.split():
        kind, _, count = row.partition(":")[2].partition("*")
        total += sizes.get(kind, 1) * int(count or 1)
    return total


def _extended(data: bytes, offset: int) -> list[Value]:
    starts: list[int] = []
    place = SIZES[0]
    while place >= SIZES[0] and place not in starts and place + 4 <= len(data):
        header = int.from_bytes(data[place : place + 4], "little")
        if not header:
            break
        starts.append(place)
        place = header >> 20 & ~3
    if not starts:
        return _gap(data, offset, SIZES[0], len(data))
    found: list[Value] = []
    at = SIZES[0]
    ends = [*sorted(starts)[1:], len(data)]
    for place, end in zip(sorted(starts), ends, strict=True):
        found += _gap(data, offset, at, place)
        cursor = Cursor(data, offset, "PCI capability", place)
        first = cursor.number("header", "le32")
        number = int(first) & 0xFFFF
        name = _EXTENDED.get(number, f"extended_{number:#x}")
        members = [first, cursor.bytes("data", end - place - 4)]
        found.append(group(name, f"PCI capability at {place:#x}", offset + place, members))
        at = end
    return found


def _distinct(values: list[Value]) -> Iterator[Value]:
    # Of several capabilities of one kind all but the first are numbered.
    counts: dict[str, int] = {}
    for value in values:
        number = counts[value.name] = counts.get(value.name, 0) + 1
        name = value.name if number == 1 else f"{value.name}_{number}"
        yield Value(name, value.type, value.offset, value.size, value.value, value.children)
