"""The JSON document of ``mem translate``, version 1 (``docs/memory.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.memory.reports import Translation
from qemu_svm.memory.results import Step
from qemu_svm.render.json.base import SCHEMA_VERSION, hex_text, optional_hex

_L2 = ("l2p", "l2v")


def render(result: Translation) -> dict[str, Any]:
    """Return the document."""
    place, walk = result.place, result.walk
    l2 = place.address if place.world == "l2p" else walk.l2_physical
    return {
        "schema_version": SCHEMA_VERSION,
        "query": place.query,
        "world": place.world,
        "result": {
            "status": walk.status.value,
            "address": optional_hex(walk.address),
            **({"l2_physical": optional_hex(l2)} if place.world in _L2 else {}),
            "size": walk.size,
            "flags": list(walk.flags),
        },
        "walk": [_step(step) for step in walk.steps],
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "stage": step.stage,
        "level": step.level,
        "table": hex_text(step.table),
        "index": step.index,
        "entry": optional_hex(step.entry),
        "flags": list(step.flags),
    }
