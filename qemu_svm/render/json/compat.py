"""The JSON document of ``compat``, version 1 (``docs/compat.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.results import CompatReport
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(result: CompatReport) -> dict[str, Any]:
    """Return the document."""
    machine, found = result.machine, result.compatibility
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {
            "path": machine.stream.source.path,
            "machine": machine.name,
            "complete": machine.stream.complete,
            "described": machine.stream.description is not None,
        },
        "target": {"qemu": result.target, "dumped_for": found.target},
        "accepted": found.accepted,
        "findings": [
            {
                "severity": one.severity.value,
                "rule": one.rule,
                "path": one.path,
                "message": one.message,
                "offset": one.offset,
                "do": one.do,
            }
            for one in found.findings
        ],
        "compared": {"sections": list(found.compared), "fields": found.fields},
        "not_in_dump": list(found.unlisted),
    }
