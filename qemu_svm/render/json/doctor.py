"""The JSON document of ``doctor``, version 1 (``docs/doctor.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.doctor.model import Diagnosis
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(result: Diagnosis) -> dict[str, Any]:
    """Return the document: all checks, and the facts that they rest on."""
    return {
        "schema_version": SCHEMA_VERSION,
        "checks": [
            {
                "group": one.group,
                "name": one.name,
                "state": one.state.value,
                "found": one.found,
                "means": one.means,
                "do": one.do,
                "needed_for": sorted(one.needed_for),
            }
            for one in result.checks
        ],
        "host": result.host,
    }
