"""The JSON document of ``record``, version 1 (``docs/record.md``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qemu_svm.recorder.record import Recorded
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(result: Recorded) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "how": result.how,
        "interrupted": result.interrupted,
        "seconds": round(result.seconds, 3),
        "status": result.status,
        "recordings": [
            {"file": one.file, "pid": one.pid, "program": one.program, **asdict(one.state)}
            for one in result.processes
        ],
    }
