"""A virtio device as a part of the document of ``show``."""

from __future__ import annotations

from typing import Any

from qemu_svm.machine.virtio.device import Queue, VirtioDevice
from qemu_svm.machine.virtio.features import STATUS, feature_bits
from qemu_svm.render.json.base import hex_text, leaf


def device(found: VirtioDevice) -> dict[str, Any]:
    """The document of one device."""
    config = found.config
    return {
        "type": found.type,
        "transport": found.transport.value,
        "driver": found.driver.value,
        "status": {
            "value": hex_text(found.status),
            "names": feature_bits(STATUS).names(found.status),
        },
        "features": {
            "value": hex_text(found.features),
            "names": [
                {"bit": feature.bit, "name": feature.name, "since": feature.since or None}
                for feature in found.accepted
            ],
        },
        "queues": [_queue(queue) for queue in found.queues],
        "config": {one.name: leaf(one) for one in (config.children if config else ())},
    }


def _queue(queue: Queue) -> dict[str, Any]:
    return {
        "index": queue.index,
        "size": queue.size,
        "desc": hex_text(queue.desc),
        "avail": hex_text(queue.avail),
        "used": hex_text(queue.used),
        "last_avail_idx": queue.last_avail_idx,
        "vector": queue.vector,
    }
