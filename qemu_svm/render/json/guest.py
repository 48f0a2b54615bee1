"""The run state of a VM as JSON: for ``capture`` and ``restore``."""

from __future__ import annotations

from typing import Any

from qemu_svm.qmp.answers import Status


def guest(status: Status) -> dict[str, Any]:
    """Return the object of a run state."""
    return {"state": status.state, "running": status.running}
