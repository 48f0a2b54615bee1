"""The JSON document of ``lab capture``, version 1 (``docs/lab.md``)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qemu_svm.lab.record import CaptureRecord, CaptureRecords
from qemu_svm.render.json.base import SCHEMA_VERSION, optional_hex


def render(result: CaptureRecords) -> dict[str, Any]:
    """Return the record of one capture, or ``captures`` with those of several."""
    if len(result.records) == 1:
        return _record(result.records[0])
    return {"captures": [_record(record) for record in result.records]}


def _record(record: CaptureRecord) -> dict[str, Any]:
    origin = record.origin
    states = zip(origin.guest.vcpus, record.flags, strict=True)
    return {
        "schema_version": SCHEMA_VERSION,
        "file": record.file,
        "size": record.size,
        "sha256": record.sha256,
        "guest": {"name": origin.guest.name, "about": origin.guest.about},
        "vcpus": [
            {"index": index, **asdict(state), "flags": optional_hex(flags)}
            for index, (state, flags) in enumerate(states)
        ],
        "tries": record.tries,
        "versions": dict(origin.versions),
        "box": {name: _plain(value) for name, value in origin.box.items()},
        "settings": asdict(origin.settings),
        "recipe": origin.recipe,
    }


def _plain(value: object) -> bool | int | str:
    return value if isinstance(value, bool | int) else str(value)
