"""The JSON document of ``mem map`` of a space with page tables, version 1 (``docs/memory.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.memory.reports import MappedRanges
from qemu_svm.render.json.base import SCHEMA_VERSION, hex_text, optional_hex


def render(result: MappedRanges) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "world": result.place.world,
        "complete": result.complete,
        "ranges": [
            {
                "start": hex_text(run.start),
                "end": hex_text(run.end),
                "size": run.size,
                "target": optional_hex(run.target),
                "flags": list(run.flags),
            }
            for run in result.runs
        ],
    }
