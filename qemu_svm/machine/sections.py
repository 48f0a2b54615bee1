"""Sections of a machine with what is known of their content beyond the description."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qemu_svm.machine.model import Machine
from qemu_svm.stream import Kind, Record, Value

if TYPE_CHECKING:
    from qemu_svm.machine.virtio.device import VirtioDevice

_VIRTIO = ("virtio-", "vhost-")
_BIG_ENDIAN = ("s390", "pseries", "powernv", "ppce500", "mac99", "g3beige", "sun4", "SS-")
"""How names of machine types start whose processors start as big-endian."""


def section_values(machine: Machine, record: Record) -> Value | None:
    """Decode a section; None if nothing is known of it.

    The field of a virtio device has its parts as children; it keeps its bytes.

    :raises StreamError: the section does not hold what is described.
    """
    found = machine.stream.values(record)
    name = (record.name or "").rpartition("/")[2]
    if record.kind is not Kind.FULL or not name.startswith(_VIRTIO):
        return found
    from qemu_svm.machine.virtio.decode import decode_field
    from qemu_svm.machine.virtio.device import FIELD

    big_endian = (machine.name or "").startswith(_BIG_ENDIAN)
    if found is None:
        return _undescribed(machine, record, name, big_endian=big_endian)
    children = list(found.children)
    for index, child in enumerate(children):
        if child.type == FIELD and (whole := decode_field(child, name, big_endian=big_endian)):
            children[index] = whole
            return found._replace(children=tuple(children))
    return found


def virtio_device(machine: Machine, record: Record) -> VirtioDevice | None:
    """Return the virtio device of a section; None if it is not one, or not understood.

    :raises StreamError: the section does not hold what is described.
    """
    from qemu_svm.machine.virtio.device import device_in

    values = section_values(machine, record)
    return None if values is None else device_in(values)


def _undescribed(machine: Machine, record: Record, name: str, *, big_endian: bool) -> Value | None:
    # Of most virtio devices the field is all of the section.
    from qemu_svm.machine.virtio.decode import decode_field
    from qemu_svm.machine.virtio.device import FIELD

    if record.payload_size > machine.stream.limits.section_bytes:
        return None
    data = machine.stream.source.read_at(record.payload, record.payload_size)
    field = Value(FIELD, FIELD, record.payload, record.payload_size, data)
    whole = decode_field(field, name, big_endian=big_endian)
    if whole is None:
        return None
    label = record.name or ""
    return Value(label, "opaque", record.payload, record.payload_size, data, (whole,))
