"""The JSON document of a ``restore`` that QEMU refused, version 1 (``docs/capture.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.results import RestoreRefusal
from qemu_svm.render.json.base import SCHEMA_VERSION, finding


def render(result: RestoreRefusal) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": result.path},
        "taken": False,
        "reason": list(result.reason),
        "findings": [finding(one) for one in result.findings],
    }
