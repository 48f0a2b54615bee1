"""The JSON document of ``mem core``, version 1 (``docs/memory.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.memory.reports import CoreReport
from qemu_svm.memory.vmcoreinfo import VmCoreInfo
from qemu_svm.render.json.base import SCHEMA_VERSION, hex_text, optional_hex


def render(result: CoreReport) -> dict[str, Any]:
    """Return the document."""
    plan = result.plan
    return {
        "schema_version": SCHEMA_VERSION,
        "file": result.path,
        "size": plan.size,
        "of": plan.level,
        "for": plan.form,
        "vcpus": [one.vcpu for one in plan.registers],
        "loads": len(plan.loads if plan.form == "crash" else plan.virtual),
        "pages": dict(plan.counts),
        "vmcoreinfo": None if plan.vmcoreinfo is None else _note(plan.vmcoreinfo),
        "missing": list(plan.missing),
        "commands": list(result.commands),
    }


def _note(note: VmCoreInfo) -> dict[str, Any]:
    return {
        "address": hex_text(note.address),
        "release": note.release,
        "kaslr_offset": optional_hex(note.kaslr_offset),
        "phys_base": note.phys_base,
    }
