"""The JSON document of ``lab witness``, version 1 (``docs/json.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.witness import Field, Part, Witness
from qemu_svm.render.json.inspect import SCHEMA_VERSION
from qemu_svm.render.json.simulate import content
from qemu_svm.render.numbers import hex_text


def document(path: str, plan: str, versions: dict[str, str], found: Witness) -> dict[str, Any]:
    """The document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": path},
        "plan": plan,
        "versions": versions,
        "kernel": found.kernel.name,
        "clean": found.clean,
        "wrong": bool(found.wrong),
        "predicted": not found.refuted,
        "refusals": list(found.refusals),
        "missing": list(found.missing),
        "parts": [_part(part) for part in found.parts],
    }


def _part(part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "level": part.level,
        "number": part.number,
        "vmcb": hex_text(part.address),
        "fields": [_field(field) for field in part.fields],
    }


def _field(field: Field) -> dict[str, Any]:
    return {
        "name": field.name,
        "given": content(field.given),
        "stream": None if field.stream is None else content(field.stream),
        "model": None if field.model is None else content(field.model),
        "verdict": field.verdict.value,
        "why": field.why or None,
        "predicted": field.predicted,
    }
