"""The JSON document of ``lab witness``, version 1 (``docs/json.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.witness import FieldComparison, VmcbComparison
from qemu_svm.lab.results import WitnessReport
from qemu_svm.render.json.base import SCHEMA_VERSION, hex_text, register


def render(result: WitnessReport) -> dict[str, Any]:
    """Return the document."""
    found = result.witness
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": result.path},
        "plan": result.plan,
        "versions": dict(result.versions),
        "kernel": found.kernel.name,
        "clean": found.clean,
        "wrong": bool(found.wrong),
        "predicted": not found.refuted,
        "refusals": list(found.refusals),
        "missing": list(found.missing),
        "parts": [_part(part) for part in found.parts],
    }


def _part(part: VmcbComparison) -> dict[str, Any]:
    return {
        "name": part.name,
        "level": part.level,
        "late": part.late,
        "number": part.number,
        "vmcb": hex_text(part.address),
        "fields": [_field(field) for field in part.fields],
    }


def _field(field: FieldComparison) -> dict[str, Any]:
    return {
        "name": field.name,
        "given": register(field.given),
        "stream": None if field.stream is None else register(field.stream),
        "model": None if field.model is None else register(field.model),
        "verdict": field.verdict.value,
        "why": field.why or None,
        "predicted": field.predicted,
    }
