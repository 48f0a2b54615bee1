"""The JSON document of ``inside``, version 1 (``docs/inside.md``); files of ``-o`` have it too."""

from __future__ import annotations

from typing import Any

from qemu_svm.inside.looking import InsideLook, VcpuLook
from qemu_svm.inside.saved import would_save
from qemu_svm.render.json.base import SCHEMA_VERSION
from qemu_svm.render.json.observed import observed


def render(result: InsideLook) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kernel": result.kernel,
        "process": {"pid": result.pid, "name": result.name},
        "look": result.number,
        "vcpus": [_vcpu(one) for one in result.vcpus],
    }


def _vcpu(one: VcpuLook) -> dict[str, Any]:
    saved = would_save(one.values) if one.values else {}
    return {
        "id": one.id,
        "vm": one.vm,
        "state": one.state.value,
        "gone": one.gone,
        "guest": one.guest if one.values else None,
        "changed": list(one.changed),
        "inside": {name: observed(name, value) for name, value in one.values.items()},
        "saved": {name: observed(name, value) for name, value in saved.items()},
    }
