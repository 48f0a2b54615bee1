"""The JSON document of ``mem read``, version 1 (``docs/memory.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.memory.reports import MemoryRead
from qemu_svm.render.json.base import SCHEMA_VERSION, digits, hex_text


def render(result: MemoryRead) -> dict[str, Any]:
    """Return the document: runs of bytes with one status."""
    runs: list[dict[str, Any]] = []
    for piece in result.pieces():
        last = runs[-1] if runs else None
        if last is not None and last["status"] == piece.status.value:
            last["size"] += piece.size
            last["hex"] += digits(piece.data)
            continue
        runs.append({
            "address": hex_text(piece.address),
            "size": piece.size,
            "status": piece.status.value,
            "hex": digits(piece.data),
        })  # fmt: skip
    place = result.place
    return {
        "schema_version": SCHEMA_VERSION,
        "query": place.query,
        "world": place.world,
        "runs": runs,
    }
