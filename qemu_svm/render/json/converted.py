"""The JSON document of ``record --convert``, version 1 (``docs/record.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.recording.convert import Converted
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(result: Converted) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "file": result.output,
        "form": result.form,
        "records": result.records,
        "redacted": result.redacted,
        "complete": result.damage is None,
    }
