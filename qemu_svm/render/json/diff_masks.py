"""The JSON document of ``diff --list-masks``, version 1 (``docs/diff.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.results import MaskList
from qemu_svm.render.json.base import SCHEMA_VERSION, hex_text


def render(result: MaskList) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "masks": [
            {
                "id": mask.id,
                "pattern": mask.pattern,
                "reason": mask.reason,
                "source": mask.source,
                "type": mask.type,
                "ignore": None if mask.ignore is None else hex_text(mask.ignore & (1 << 64) - 1),
            }
            for mask in result.masks
        ],
    }
