"""The JSON document of ``lab restore``, version 1 (``docs/lab.md``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qemu_svm.lab.results import BoxRestore
from qemu_svm.render.json.base import SCHEMA_VERSION
from qemu_svm.render.json.lab_rules import rules


def render(result: BoxRestore) -> dict[str, Any]:
    """Return the document."""
    outcome = result.outcome
    return {
        "schema_version": SCHEMA_VERSION,
        "file": result.path,
        "verdict": outcome.verdict.value,
        "reason": outcome.reason,
        "guest": outcome.guest,
        "moved": list(outcome.moved),
        "rules": rules(result.why),
        "versions": dict(result.versions),
        "settings": asdict(result.settings),
    }
