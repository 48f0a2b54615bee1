"""The JSON document of ``capture``, version 1 (``docs/capture.md``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qemu_svm.qmp.capture import Captured
from qemu_svm.render.json.base import SCHEMA_VERSION
from qemu_svm.render.json.guest import guest


def render(result: Captured) -> dict[str, Any]:
    """Return the document.

    ``migration`` has the members of :class:`qemu_svm.qmp.answers.Migration`, in its units.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "files": list(result.files),
        "size": result.size,
        "seconds": round(result.seconds, 3),
        "qemu": str(result.version),
        "stopped_seconds": result.stopped,
        "guest": {"before": guest(result.before), "after": guest(result.after)},
        "migration": asdict(result.migration) | {"blockers": list(result.migration.blockers)},
        "left": list(result.left),
    }
