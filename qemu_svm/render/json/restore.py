"""The JSON document of a ``restore`` that succeeded, version 1 (``docs/capture.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.qmp.restore import RestoreReport
from qemu_svm.render.json.base import SCHEMA_VERSION
from qemu_svm.render.json.guest import guest


def render(result: RestoreReport) -> dict[str, Any]:
    """Return the document."""
    done, socket = result.restored, result.socket
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": result.path},
        "taken": True,
        "qemu": str(done.version),
        "guest": guest(done.status),
        "size": done.size,
        "seconds": round(done.seconds, 3),
        "qmp": f"unix:{socket}" if socket is not None else None,
    }
