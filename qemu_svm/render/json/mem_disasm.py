"""The JSON document of ``mem disasm``, version 1 (``docs/memory.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.memory.reports import Disassembly
from qemu_svm.render.json.base import SCHEMA_VERSION, digits, hex_text


def render(result: Disassembly) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "query": result.place.query,
        "world": result.place.world,
        "instructions": [
            {
                "address": hex_text(one.address),
                "status": one.status.value,
                "hex": digits(one.data),
                "text": one.text,
            }
            for one in result.instructions
        ],
    }
