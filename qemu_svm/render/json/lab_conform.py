"""The JSON document of ``lab conform``, version 1 (``docs/replay.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.render.conform_words import command
from qemu_svm.render.json.base import SCHEMA_VERSION
from qemu_svm.render.json.observed import observed
from qemu_svm.replay.job import kernel_of
from qemu_svm.replay.results import ConformReport


def render(result: ConformReport) -> dict[str, Any]:
    """Return the document."""
    found = result.report
    return {
        "schema_version": SCHEMA_VERSION,
        "kernel": kernel_of(found.probe),
        "profile": found.profile,
        "npt": result.npt,
        "inside": found.layout is not None,
        "seed": found.seed,
        "sequences": found.sequences,
        "steps": found.steps,
        "repeated": found.repeated,
        "ends": dict(found.ends),
        "open": dict(found.open),
        "crashes": [
            {"guest": guest, "plan": plan, "host": words} for guest, plan, words in found.crashes
        ],
        "disagreements": [
            {
                "guest": one.guest.name,
                "sequence": one.number,
                "plan": one.plan,
                "shrunk": one.shrunk,
                "step": one.step,
                "name": one.mismatch.name,
                "kernel": observed(one.mismatch.name, one.mismatch.kernel),
                "model": observed(one.mismatch.name, one.mismatch.model),
                "command": command(one, result),
            }
            for one in found.disagreements
        ],
    }
