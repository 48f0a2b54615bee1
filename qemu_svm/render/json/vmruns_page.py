"""The JSON document of ``vmruns --show``, version 1 (``docs/json.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.nested import layout
from qemu_svm.render.json.base import SCHEMA_VERSION, hex_text
from qemu_svm.render.json.vmcb import content
from qemu_svm.vmruns.fields import fields
from qemu_svm.vmruns.results import VmcbPage
from qemu_svm.vmruns.structs import kind_name


def render(result: VmcbPage) -> dict[str, Any]:
    """Return the document: one VMCB with all its fields."""
    event = result.event
    page = event.page
    assert page is not None
    assert len(page) == layout.VMCB_SIZE
    return {
        "schema_version": SCHEMA_VERSION,
        "number": event.number,
        "kind": kind_name(event.kind),
        "cpu": event.vcpu,
        "time_ns": event.time,
        "rip": hex_text(event.rip),
        "rax": hex_text(event.rax),
        "vmcb": hex_text(event.address),
        "fields": {field.path: content(field.read(page)) for field in fields()},
    }
