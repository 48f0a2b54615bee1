"""The JSON of ``watch``, version 1 (``docs/watch.md``): one document a line."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from qemu_svm.qmp.watch import Update
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(result: Update) -> dict[str, Any]:
    """Return the document of one sample; what is set is repeated only when it changed."""
    sample, before = result.sample, result.before
    settings = None
    if before is None or (before.capabilities, before.parameters) != (
        sample.capabilities,
        sample.parameters,
    ):
        settings = {
            "capabilities": dict(sample.capabilities),
            "parameters": dict(sample.parameters),
        }
    found = sample.migration
    return {
        "schema_version": SCHEMA_VERSION,
        "time": sample.time,
        "cause": sample.cause,
        "vm": {"state": sample.vm.state, "running": sample.vm.running},
        "status": found.status,
        "active": found.active,
        "ended": found.ended,
        "error": found.error,
        "blockers": list(found.blockers),
        "ram": {
            "transferred": found.transferred,
            "remaining": found.remaining,
            "total": found.total,
            "page_size": found.page_size,
            "normal_pages": found.normal,
            "zero_pages": found.zero,
            "passes": found.passes,
        },
        "rates": asdict(sample.rates),
        "eta": sample.eta,
        "times_ms": {
            "total": found.total_time,
            "setup": found.setup_time,
            "downtime": found.downtime,
            "expected_downtime": found.expected_downtime,
        },
        "settings": settings,
        "query_migrate": dict(sample.answer),
    }
