"""What QEMU (x-query-virtio-*) and Linux (sysfs) say of virtio devices, as we say it."""

from __future__ import annotations

from typing import Any

from qemu_svm.machine import Machine
from qemu_svm.machine.sections import virtio_device
from qemu_svm.machine.virtio import features
from qemu_svm.machine.virtio.device import VirtioDevice

_RENAMED = {"REPORTING": "PAGE_REPORTING", "IOMMU_PLATFORM": "ACCESS_PLATFORM"}
_PREFIXES = ("VIRTIO_RING_F_", "VIRTIO_F_", "VHOST_USER_F_", "VHOST_F_", "VIRTIO_CONFIG_S_")


def devices_in(machine: Machine) -> list[VirtioDevice]:
    """Every device of a stream; each virtio section must be understood."""
    found = []
    for record in machine.stream.sections():
        described = machine.stream.device(record)
        if described is not None and any(f.type == "virtio" for f in described.layout.fields):
            device = virtio_device(machine, record)
            assert device is not None, record.name
            found.append(device)
    return found


def of_stream(device: VirtioDevice) -> dict[str, Any]:
    """A device of a stream, comparable with :func:`of_qemu`."""
    return {
        "type": device.type,
        "features": device.features,
        "status": device.status,
        "isr": device.tree.number("isr"),
        "queue_sel": device.tree.number("queue_sel"),
        "queues": [
            (queue.size, queue.desc, queue.avail, queue.used, queue.last_avail_idx)
            for queue in device.queues
        ],
    }


def of_qemu(said: dict[str, Any]) -> dict[str, Any]:
    """A device as QEMU says."""
    status = said["status"]
    device = features.DEVICE_IDS[status["device-id"]]
    queues = [queue for queue in said["queues"] if queue["vring-num"]]
    return {
        "type": device,
        "features": _bits(status["guest-features"], device),
        "status": sum(
            1 << _bit(text, features.STATUS) for text in status["status"]["statuses"]
        ) | status["status"].get("unknown-statuses", 0),
        "isr": status["isr"],
        "queue_sel": status["queue-sel"],
        "queues": [of_queue(queue) for queue in queues],
    }  # fmt: skip


def of_queue(queue: dict[str, Any]) -> tuple[int, ...]:
    """A queue as QEMU says."""
    names = ("vring-num", "vring-desc", "vring-avail", "vring-used", "last-avail-idx")
    return tuple(queue[name] for name in names)


def order(device: dict[str, Any]) -> str:
    """A key that sorts both the same."""
    return repr((device["type"], device["queues"], device["features"]))


def _bits(said: dict[str, Any], device: str) -> int:
    names = said["transports"] + said.get("dev-features", [])
    unknown: int = said.get("unknown-dev-features", 0) | said.get("unknown-dev-features2", 0) << 64
    return sum(1 << _bit(text, device) for text in names) | unknown


def _bit(text: str, table: str) -> int:
    # "VIRTIO_NET_F_CSUM: what it is for"
    name = text.partition(":")[0]
    prefix = next((one for one in _PREFIXES if name.startswith(one)), None)
    short = name.removeprefix(prefix) if prefix else name.partition("_F_")[2]
    short = {"NEEDS_RESET": "DEVICE_NEEDS_RESET"}.get(short, _RENAMED.get(short, short))
    return next(one.bit for one in features.features(table) if one.name == short)
