"""The JSON document of ``diff`` for looks into kernel memory, version 1 (``docs/inside.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.inside.apart import Apart, InsideDiff
from qemu_svm.inside.looking import InsideLook
from qemu_svm.machine import Machine
from qemu_svm.render.json.base import SCHEMA_VERSION
from qemu_svm.render.json.observed import observed


def render(result: InsideDiff) -> dict[str, Any]:
    """Return the document; masked differences are included, and marked."""
    a, b = (_side(one) for one in result.sides)
    return {
        "schema_version": SCHEMA_VERSION,
        "a": a,
        "b": b,
        "same": result.same,
        "saved": result.saved,
        "moving": list(result.moving),
        "differences": [_difference(one) for one in result.differences],
    }


def _side(side: InsideLook | Machine) -> dict[str, Any]:
    if isinstance(side, InsideLook):
        process = {"pid": side.pid, "name": side.name}
        return {"path": side.path, "inside": True, "kernel": side.kernel, "process": process}
    return {
        "path": side.stream.source.path,
        "inside": False,
        "machine": side.name,
        "complete": side.stream.complete,
    }


def _difference(one: Apart) -> dict[str, Any]:
    return {
        "group": one.vcpu,
        "path": one.path,
        "a": None if one.a is None else {"value": observed(one.name, one.a)},
        "b": None if one.b is None else {"value": observed(one.name, one.b)},
        "mask": one.mask,
    }
