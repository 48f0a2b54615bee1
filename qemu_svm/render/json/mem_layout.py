"""The JSON document of ``mem map`` of L1-physical memory, version 1 (``docs/memory.md``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qemu_svm.memory.layout import Range
from qemu_svm.memory.reports import PhysicalMap
from qemu_svm.render.json.base import SCHEMA_VERSION, hex_text
from qemu_svm.stream import RamBlock


def render(result: PhysicalMap) -> dict[str, Any]:
    """Return the document."""
    layout, blocks = result.layout, result.blocks
    return {
        "schema_version": SCHEMA_VERSION,
        "world": result.place.world,
        "ranges": [_range(one, blocks) for one in layout.ranges],
        "smram": [_range(one, blocks) for one in layout.smram],
        "unplaced": [
            {"block": blocks[index].name, "reason": reason} for index, reason in layout.unplaced
        ],
        "assumptions": list(layout.assumptions),
    }


def _range(one: Range, blocks: Sequence[RamBlock]) -> dict[str, Any]:
    return {
        "start": hex_text(one.start),
        "end": hex_text(one.end),
        "size": one.size,
        "use": one.use.value,
        "block": blocks[one.block].name,
        "offset": one.offset,
        "reason": one.reason,
    }
