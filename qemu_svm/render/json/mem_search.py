"""The JSON document of ``mem search``, version 1 (``docs/memory.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.memory.reports import SearchReport
from qemu_svm.render.json.base import SCHEMA_VERSION, digits, hex_text


def render(result: SearchReport) -> dict[str, Any]:
    """Return the document."""
    world = result.place.world
    return {
        "schema_version": SCHEMA_VERSION,
        "world": world,
        "pattern": digits(result.pattern),
        "complete": result.complete,
        "hits": [
            {
                "address": hex_text(one.hit.address),
                "world": world,
                "l1_physical": hex_text(one.hit.l1_physical),
                "l2_physical": [
                    {"root": hex_text(root), "address": hex_text(address)}
                    for root, address in one.l2_physical
                ],
            }
            for one in result.hits
        ],
    }
