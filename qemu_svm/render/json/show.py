"""The JSON document of ``show``, version 1."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.results import Shown
from qemu_svm.machine.virtio.device import device_in
from qemu_svm.render.json.base import MOST_BYTES, SCHEMA_VERSION, digits, typed
from qemu_svm.render.json.virtio import device
from qemu_svm.render.words import bit_names, description, meaning
from qemu_svm.stream import Value
from qemu_svm.stream.vmstate.values import join


def render(result: Shown) -> dict[str, Any]:
    """Return the document."""
    found = result.place
    virtio = device_in(found.value)
    return {
        "schema_version": SCHEMA_VERSION,
        "path": found.path,
        **_node(found.path, found.value),
        "raw": digits(result.raw[:MOST_BYTES]),
        **({} if virtio is None else {"virtio": device(virtio)}),
    }


def _node(path: str, value: Value) -> dict[str, Any]:
    names = bit_names(path, value)
    text, words = meaning(path, value), description(path)
    children = [_node(join(path, c.name), c) for c in value.children]
    return {
        "name": value.name,
        "offset": value.offset,
        "size": value.size,
        **typed(value),
        **({} if names is None else {"names": names}),
        **({"meaning": text} if text else {}),
        **({"description": words} if words else {}),
        **({"children": children} if children else {}),
    }
