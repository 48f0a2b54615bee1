"""The JSON document of ``lab up``, version 1 (``docs/lab.md``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qemu_svm.lab.results import BoxReport
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(result: BoxReport) -> dict[str, Any]:
    """Return the document."""
    return {"schema_version": SCHEMA_VERSION, "box": asdict(result.box)}
