"""The JSON document of ``lab patch``, version 1 (``docs/patch-review.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.lab.trial.differ import Change, Difference
from qemu_svm.lab.trial.trial import Trial
from qemu_svm.render.json.base import SCHEMA_VERSION
from qemu_svm.render.json.observed import observed


def render(result: Trial) -> dict[str, Any]:
    """Return the document."""
    patch = result.patch
    return {
        "schema_version": SCHEMA_VERSION,
        "patch": {
            "path": result.path,
            "digest": None if patch is None else patch.digest,
            "files": [] if patch is None else list(patch.files),
            "skipped": [] if patch is None else list(patch.skipped),
            "remarks": list(result.module.remarks),
            "warnings": list(result.module.warnings),
            "modules": sorted(result.module.files),
            "source": result.module.source or None,
        },
        "kernel": result.kernel,
        "guests": result.guests,
        "plans": result.plans,
        "sequences": result.sequences,
        "steps": result.steps,
        "differences": [_difference(one) for one in result.differences],
        "crashes": [
            {
                "guest": one.guest,
                "plan": one.plan,
                "with_patch": one.with_patch,
                "host": one.words,
                "step": one.step,
                "text": one.text,
                "place": result.places.get(one.words) if one.with_patch else None,
            }
            for one in result.crashes
        ],
        "kernel_warnings": [
            {"text": one.text, "place": one.place or None, "functions": list(one.functions[:8])}
            for one in result.warnings
        ],
        "same": list(result.same),
        "stopped": result.stopped,
        "other_kernel": result.other or None,
        "inside": result.inside,
    }


def _difference(one: Difference) -> dict[str, Any]:
    return {
        "guest": one.guest,
        "plan": one.plan,
        "plans": one.plans,
        "step": one.step,
        "text": one.text,
        "inside_only": one.inside_only,
        "outside": one.outside,
        "shown": None if one.shown is None else _difference(one.shown),
        "until": None if one.until is None else {"step": one.until[0], "text": one.until[1]},
        "changes": [_change(change) for change in one.changes],
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "name": change.name,
        "without": observed(change.name, change.without),
        "with": observed(change.name, change.with_patch),
        "owner": change.owner or None,
    }
