"""A migration as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qemu_svm.qmp.answers import Migration, Status
    from qemu_svm.qmp.capture import Captured
    from qemu_svm.qmp.restore import Restored
    from qemu_svm.rules import Finding

SCHEMA_VERSION = 1


def migration_document(migration: Migration) -> dict[str, Any]:
    """What QEMU tells of a migration; see :class:`Migration` for the units."""
    found = asdict(migration)
    found["blockers"] = list(migration.blockers)
    return found


def captured_document(done: Captured) -> dict[str, Any]:
    """A capture that succeeded."""
    return {
        "schema_version": SCHEMA_VERSION,
        "files": list(done.files),
        "size": done.size,
        "seconds": round(done.seconds, 3),
        "qemu": str(done.version),
        "stopped_seconds": done.stopped,
        "guest": {"before": _status(done.before), "after": _status(done.after)},
        "migration": migration_document(done.migration),
    }


def restored_document(path: str, done: Restored, socket: str | None) -> dict[str, Any]:
    """A restore that succeeded."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": path},
        "taken": True,
        "qemu": str(done.version),
        "guest": _status(done.status),
        "size": done.size,
        "seconds": round(done.seconds, 3),
        "qmp": f"unix:{socket}" if socket is not None else None,
    }


def refused_document(path: str, reason: Sequence[str], known: Sequence[Finding]) -> dict[str, Any]:
    """A stream that QEMU did not take."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": path},
        "taken": False,
        "reason": list(reason),
        "findings": [
            {
                "severity": finding.severity,
                "rule": finding.rule,
                "message": finding.message,
                "offset": finding.offset,
            }
            for finding in known
        ],
    }


def _status(status: Status) -> dict[str, Any]:
    return {"state": status.state, "running": status.running}
