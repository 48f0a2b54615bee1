"""The one opaque field of a virtio device's section, as a tree.

QEMU writes it by hand (``virtio_save``), so no description covers it: first what the
transport has to save (PCI: the configuration space and MSI-X), then what all devices
have (status, features, configuration, queues), then the state of this type of device,
then subsections.  Nothing says which transport it is, or how long the parts are: each
possibility is tried, and one is taken if it leads exactly to the field's known end.

Every byte is in exactly one leaf of the tree.

Source: QEMU ``hw/virtio/virtio.c`` (``virtio_save``, ``virtio_load``), ``virtio-pci.c``,
``virtio-mmio.c``, ``hw/pci/pci.c``, ``msix.c``, ``hw/s390x/virtio-ccw.c``, 5.2 to 10.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import NamedTuple

from qemu_svm.errors import Malformed
from qemu_svm.machine import pci
from qemu_svm.machine.cursor import Cursor, group
from qemu_svm.machine.virtio import features, layouts, state
from qemu_svm.machine.virtio.wire import next_name, per_queue, simple, subsection
from qemu_svm.stream.vmstate.values import Value

FEATURES_TYPE = "virtio features: "
"""Type of a value with feature bits, followed by the type of the device."""

FEATURES_HIGH_TYPE = "virtio features from 64: "
STATUS_TYPE = "virtio status"

_VENDOR = 0x1AF4
_FIRST_MODERN = 0x1040
_LAST_MODERN = 0x107F
_PINS = 4
_MSIX_ENTRY = "address:le64 data:le32 control:le32"
_VERSION_1 = 1 << 32
_BIG_ENDIAN = 2  # VIRTIO_DEVICE_ENDIAN_BIG


class Transport(StrEnum):
    """How a guest reaches the device."""

    PCI = "pci"
    MMIO = "mmio"
    CCW = "ccw"


class _Head(NamedTuple):
    # What the transport has: its values, the device's number (None if unknown), and
    # which fields it adds to a queue.
    values: list[Value]
    numeric: int | None
    align: bool
    vector: bool


class _Bus(NamedTuple):
    transport: Transport
    read: Callable[[Cursor], _Head]


def decode_field(value: Value, section: str, *, big_endian: bool = False) -> Value | None:
    """Return the field ``virtio`` of a section with its parts as children.

    :param value: the field, with its bytes.
    :param section: name of the section's description, ``virtio-net``.
    :param big_endian: the guest's processor is, so its legacy devices are too.
    :returns: None if it is not understood.
    """
    data = value.value
    if not isinstance(data, bytes):
        return None
    for bus in _BUSES:
        device = features.device_type(section)
        for variant in state.variants(device):
            cursor = Cursor(data, value.offset, section)
            try:
                children = list(_device(cursor, bus, section, variant, big_endian=big_endian))
            except Malformed:
                continue
            if not cursor.left:
                return Value(
                    value.name, value.type, value.offset, value.size, data, tuple(children)
                )
    return None


def _device(
    cursor: Cursor,
    bus: _Bus,
    section: str,
    variant: state.Reader,
    *,
    big_endian: bool,
) -> Iterator[Value]:
    start = cursor.offset
    head = bus.read(cursor)
    device = features.device_type(section, head.numeric)
    yield group(bus.transport.value, "virtio transport", start, head.values)
    yield cursor.number("status", "u8", STATUS_TYPE)
    yield from cursor.rows(layouts.COMMON)
    low = cursor.number("features_low", "u32", FEATURES_TYPE + device)
    yield low
    length = cursor.number("config_len", "u32")
    yield length
    config_at = cursor.offset
    config = cursor.take(int(length), "config")
    count = cursor.number("queue_count", "u32")
    if int(count) > layouts.QUEUES:
        raise cursor.malformed("queue_count", f"at most {layouts.QUEUES}", str(int(count)))
    queues = _queues(cursor, int(count), head)
    own_at = cursor.offset
    own = variant(cursor, int(low), config)
    tail = list(_subsections(cursor, int(count), device))
    # The byte order of the configuration depends on what comes after it.
    fields = _config(config, config_at, device, swapped=_swapped(tail, big_endian))
    yield group("config", f"virtio-{device} config", config_at, fields)
    yield count
    yield queues
    if own:
        yield group("device", f"virtio-{device} state", own_at, own)
    yield from tail


def _queues(cursor: Cursor, count: int, head: _Head) -> Value:
    fields = " ".join(
        ("num:u32", *["align:u32"] * head.align, "desc:u64", "last_avail_idx:u16",
         *["vector:u16"] * head.vector)
    )  # fmt: skip
    start = cursor.offset
    members = []
    for index in range(count):
        at = cursor.offset
        members.append(group(f"[{index}]", "struct", at, cursor.rows(fields)))
    return group("queues", "array", start, members)


def _config(data: bytes, offset: int, device: str, *, swapped: bool) -> Iterator[Value]:
    # As many fields as there are bytes; a device has more of them the newer it is.
    cursor = Cursor(data, offset, f"virtio-{device} config")
    for row in layouts.CONFIG.get(device, "").split():
        before = cursor.at
        try:
            yield from cursor.rows(row.replace(":le", ":u") if swapped else row)
        except Malformed:
            cursor.at = before
            break
    if cursor.left:
        yield cursor.bytes("rest", cursor.left)


def _swapped(tail: list[Value], big_endian: bool) -> bool:  # noqa: FBT001
    for one in tail:
        if one.name == "virtio/64bit_features" and one.number("guest_features") & _VERSION_1:
            return False
        if one.name == "virtio/device_endian":
            big_endian = one.number("device_endian") == _BIG_ENDIAN
    return big_endian


# Transports.


def _pci(size: int) -> Callable[[Cursor], _Head]:
    def read(cursor: Cursor) -> _Head:
        version = cursor.number("version_id", "u32")
        data = cursor.peek(size)
        vendor, number = (int.from_bytes(data[at : at + 2], "little") for at in (0, 2))
        if len(data) < size or vendor != _VENDOR:
            raise cursor.malformed("config", f"a PCI device of vendor {_VENDOR:#x}", f"{vendor:#x}")
        numeric = number - _FIRST_MODERN if _FIRST_MODERN <= number <= _LAST_MODERN else None
        if numeric is None:  # a transitional device: its type is its subsystem's number
            numeric = int.from_bytes(data[0x2E:0x30], "little")
        space = pci.config_space(data, cursor.offset)
        values = [version, group("config", "PCI configuration space", cursor.offset, space)]
        cursor.take(size, "config")
        values.append(cursor.numbers("irq_state", "u32", _PINS))
        place = pci.capabilities(data).get(pci.MSIX)
        if place is not None:
            values += _msix(cursor, data[place + 2] | (data[place + 3] & 7) << 8)
        return _Head(values, numeric, align=False, vector=place is not None)

    return read


def _msix(cursor: Cursor, last: int) -> Iterator[Value]:
    start, members = cursor.offset, []
    for index in range(last + 1):
        at = cursor.offset
        members.append(group(f"[{index}]", "struct", at, cursor.rows(_MSIX_ENTRY)))
    yield group("msix_table", "array", start, members)
    yield cursor.bytes("msix_pending", -(-(last + 1) // 8))
    yield cursor.number("config_vector", "u16")


def _mmio(cursor: Cursor) -> _Head:
    return _Head(cursor.rows(layouts.MMIO), None, align=True, vector=False)


def _ccw(cursor: Cursor) -> _Head:
    start = cursor.offset
    members = cursor.rows(layouts.SUBCHANNEL)
    orb = simple(cursor, "s390_subch_dev/orb", layouts.SUBCHANNEL_ORB)
    members += [] if orb is None else [orb]
    values = [group("subchannel", "struct", start, members), *cursor.rows(layouts.CCW)]
    summary = simple(cursor, "s390_adapter_info/summary_offset", layouts.CCW_SUMMARY)
    values += [] if summary is None else [summary]
    values += cursor.rows(layouts.CCW_END)
    number = values[0].number("cu_model")
    return _Head(values, number, align=False, vector=True)


_BUSES = (
    _Bus(Transport.PCI, _pci(pci.SIZES[0])),
    _Bus(Transport.PCI, _pci(pci.SIZES[1])),
    _Bus(Transport.CCW, _ccw),
    _Bus(Transport.MMIO, _mmio),
)


# Subsections.


def _subsections(cursor: Cursor, queues: int, device: str) -> Iterator[Value]:
    while cursor.left:
        name = next_name(cursor)
        one = _subsection(cursor, name, queues, device)
        if one is None:
            # Unknown here, or none at all; nothing says where it ends.
            raise cursor.malformed("subsection", "a subsection of virtio", name or "none")
        yield one


def _subsection(cursor: Cursor, name: str, queues: int, device: str) -> Value | None:
    def fields(at: Cursor, _version: int) -> list[Value]:
        high = name == "virtio/128bit_features"
        types = {"guest_features": (FEATURES_HIGH_TYPE if high else FEATURES_TYPE) + device}
        found = at.rows(layouts.SUBSECTIONS.get(name, ""), types)
        if name in layouts.PER_QUEUE:
            found.append(per_queue(at, "vq", layouts.PER_QUEUE[name], queues))
        inner = (_subsection(at, one, queues, device) for one in layouts.INNER.get(name, ()))
        return found + [one for one in inner if one is not None]

    known = name in layouts.SUBSECTIONS or name in layouts.PER_QUEUE or name in layouts.INNER
    return subsection(cursor, name, fields) if known else None
