"""The JSON document of ``roundtrip``, version 1 (``docs/capture.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.results import RoundTrip
from qemu_svm.render.json import diff


def render(result: RoundTrip) -> dict[str, Any]:
    """Return the document: that of ``diff``, and the version of the QEMU in between."""
    return diff.render(result.diff) | {"qemu": result.version}
