"""The JSON document of ``doctor``, version 1 (``docs/doctor.md``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qemu_svm.doctor.model import Check
from qemu_svm.render.json.inspect import SCHEMA_VERSION


def document(checks: Sequence[Check], facts: dict[str, Any]) -> dict[str, Any]:
    """All checks, and the facts about the host that they rest on."""
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
            for one in checks
        ],
        "host": facts,
    }
