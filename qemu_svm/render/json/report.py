"""The JSON document of ``report``, version 1 (``docs/report.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.overview import Written
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(result: Written) -> dict[str, Any]:
    """Return the document."""
    found = result.overview
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": found.machine.stream.source.path},
        "file": result.path,
        "size": result.size,
        "complete": found.complete,
        "verdict": None if found.verdict is None else found.verdict.value,
        "contents": list(found.contents),
        "memory_bytes": found.memory_bytes,
        "redacted": list(result.redacted),
    }
