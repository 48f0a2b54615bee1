"""The JSON document of ``compat``, version 1 (``docs/compat.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.compat import Compatibility
from qemu_svm.machine import Machine
from qemu_svm.render.json.inspect import SCHEMA_VERSION


def document(machine: Machine, found: Compatibility, target: str) -> dict[str, Any]:
    """The document of ``compat``.

    :param target: what the stream was held against.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {
            "path": machine.stream.source.path,
            "machine": machine.name,
            "complete": machine.stream.complete,
            "described": machine.stream.description is not None,
        },
        "target": {"qemu": target, "dumped_for": found.target},
        "accepted": found.accepted,
        "findings": [
            {
                "severity": one.severity.value,
                "rule": one.rule,
                "path": one.path,
                "message": one.message,
                "offset": one.offset,
                "do": one.do,
            }
            for one in found.findings
        ],
        "compared": {"sections": list(found.compared), "fields": found.fields},
        "not_in_dump": list(found.unlisted),
    }
