"""A migration as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qemu_svm.qmp.answers import Migration, Status
    from qemu_svm.qmp.capture import Captured

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


def _status(status: Status) -> dict[str, Any]:
    return {"state": status.state, "running": status.running}
