"""A virtio device as its driver left it, put together from the parts of its section.

Source: QEMU ``hw/virtio/virtio.c`` (``virtio_queue_update_rings`` for the rings of a
legacy device, whose addresses are not on the wire); VIRTIO 1.2, 2.7 and 2.8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from qemu_svm.machine.virtio import features as names
from qemu_svm.machine.virtio.decode import FEATURES_TYPE, Transport
from qemu_svm.stream.vmstate.values import Value

FIELD = "virtio"
"""Type of the field that is decoded."""

_DESCRIPTOR = 16
_USED_ALIGN = 4096
_NO_VECTOR = 0xFFFF
_DRIVER = 1 << 1
_VERSION_1 = 1 << 32
_PACKED = 1 << 34
_HIGH = 64


class Driver(StrEnum):
    """Which driver the device has."""

    NONE = "none"
    LEGACY = "legacy"
    MODERN = "virtio 1"


@dataclass(frozen=True, slots=True)
class Queue:
    """One queue.

    :param size: entries that the driver uses.
    :param desc: guest-physical address of the descriptors, 0 if the queue is not set up.
    :param avail: address of the available ring; of a packed queue, the driver's area.
    :param used: address of the used ring; of a packed queue, the device's area.
    :param last_avail_idx: index of the next available entry that the device takes.
    :param vector: MSI-X vector; None if it has none.
    """

    index: int
    size: int
    desc: int
    avail: int
    used: int
    last_avail_idx: int
    vector: int | None


@dataclass(frozen=True, slots=True)
class VirtioDevice:
    """One device.

    :param type: ``net``, ``blk`` and so on.
    :param tree: the decoded field.
    :param features: bits that the driver has accepted.
    """

    type: str
    transport: Transport
    tree: Value
    status: int
    features: int
    queues: tuple[Queue, ...]

    @property
    def driver(self) -> Driver:
        """Which driver the device has."""
        if not self.status & _DRIVER:
            return Driver.NONE
        return Driver.MODERN if self.features & _VERSION_1 else Driver.LEGACY

    @property
    def accepted(self) -> tuple[names.Feature, ...]:
        """Features by name; a bit without a name is ``bit N``."""
        known = {feature.bit: feature for feature in names.features(self.type)}
        bits = (bit for bit in range(self.features.bit_length()) if self.features >> bit & 1)
        return tuple(known.get(bit, names.Feature(bit, f"bit {bit}", "")) for bit in bits)

    @property
    def config(self) -> Value | None:
        """The device's configuration as the driver sees it."""
        return self.tree.child("config")

    @property
    def pci(self) -> Value | None:
        """The PCI configuration space; None on other buses."""
        head = self.tree.child(Transport.PCI)
        return None if head is None else head.child("config")


def device_in(value: Value) -> VirtioDevice | None:
    """Return the device of a section's tree, or of the field itself; None if there is none."""
    if value.type != FIELD:
        inner = (child for child in value.children if child.type == FIELD and child.children)
        found = next(inner, None)
        return None if found is None else device_in(found)
    low = value.child("features_low")
    if low is None or not low.type.startswith(FEATURES_TYPE):
        return None
    transport = next(one for one in Transport if value.child(one) is not None)
    features = int(low)
    more, high = (value.child(f"virtio/{bits}bit_features") for bits in (64, 128))
    if more is not None:
        features = more.number("guest_features")
    if high is not None:
        features |= high.number("guest_features") << _HIGH
    return VirtioDevice(
        type=low.type.removeprefix(FEATURES_TYPE),
        transport=transport,
        tree=value,
        status=value.number("status"),
        features=features,
        queues=tuple(_queues(value, packed=bool(features & _PACKED))),
    )


def _queues(tree: Value, *, packed: bool) -> Iterator[Queue]:
    queues = tree.child("queues")
    for index, one in enumerate(queues.children if queues is not None else ()):
        size, desc = one.number("num"), one.number("desc")
        rings = tree.resolve(f"virtio/virtqueues.vq[{index}]")
        if rings is not None:
            avail, used = rings.number("avail"), rings.number("used")
        elif desc:
            avail = desc + _DESCRIPTOR * size
            align = one.number("align", _USED_ALIGN) or 1
            used = -(-(avail + 4 + 2 * size) // align) * align
        else:
            avail = used = 0
        state = tree.resolve(f"virtio/packed_virtqueues.vq[{index}]") if packed else None
        vector = one.number("vector", _NO_VECTOR)
        yield Queue(
            index,
            size,
            desc,
            avail,
            used,
            (one if state is None else state).number("last_avail_idx"),
            None if vector == _NO_VECTOR else vector,
        )
