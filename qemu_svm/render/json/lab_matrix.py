"""The JSON document of ``lab matrix``, version 1 (``docs/lab.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.lab.matrix import Matrix
from qemu_svm.render.json.base import SCHEMA_VERSION
from qemu_svm.render.json.lab_rules import rules


def render(result: Matrix) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "foreign": result.foreign,
        "hosts": {str(host): dict(versions) for host, versions in result.versions.items()},
        "cells": [
            {
                "guest": cell.guest,
                "source": str(cell.source),
                "target": str(cell.target),
                "machine": cell.machine,
                "verdict": cell.outcome.verdict.value,
                "reason": cell.outcome.reason,
                "moved": list(cell.outcome.moved),
                "rules": rules(cell.rules),
            }
            for cell in result.cells
        ],
    }
