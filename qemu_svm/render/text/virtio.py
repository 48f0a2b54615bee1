"""A virtio device as a part of the report of ``show``."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from qemu_svm.machine.virtio.device import Driver, VirtioDevice
from qemu_svm.machine.virtio.features import STATUS, feature_bits
from qemu_svm.render.text.base import columns, entry, named_bits

_DRIVERS = {
    Driver.NONE: "no driver",
    Driver.LEGACY: "a legacy driver",
    Driver.MODERN: "a driver of virtio 1",
}


def device_lines(found: VirtioDevice) -> Iterator[Text]:
    """Driver, features and queues."""
    bus = found.transport.value.upper()
    yield entry("device", f"virtio-{found.type} ({bus}), {_DRIVERS[found.driver]}")
    status = feature_bits(STATUS).names(found.status)
    yield entry("status", named_bits(f"{found.status:#x}", status))
    names = [feature.name for feature in found.accepted]
    yield entry("features", named_bits(f"{found.features:#x}", names))
    rows: list[list[str | Text]] = [
        [
            f"{queue.index}",
            f"{queue.size}",
            f"{queue.desc:#x}",
            f"{queue.avail:#x}",
            f"{queue.used:#x}",
            f"{queue.last_avail_idx}",
            "none" if queue.vector is None else f"{queue.vector}",
        ]
        for queue in found.queues
        if queue.desc
    ]
    idle = len(found.queues) - len(rows)
    if rows:
        yield from columns(rows, ("queue", "size", "desc", "avail", "used", "next", "vector"))
    if idle:
        yield entry("queues", f"{idle} not set up")
