"""The JSON document of ``check --rules`` and ``--explain``, version 1 (``docs/json.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.advisories import BY_RULE
from qemu_svm.findings.advisory import Advisory
from qemu_svm.findings.results import RuleList
from qemu_svm.model.kernels.changes import Change
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(result: RuleList) -> dict[str, Any]:
    """Return the document."""
    return {
        "schema_version": SCHEMA_VERSION,
        "rules": [
            {
                "id": rule.id,
                "kind": rule.kind.value,
                "severity": rule.severity.value,
                "fails_when": rule.fails_when,
                "means": rule.consequence,
                "do": rule.advice,
                "source": rule.source,
                "kernels": list(rule.kernels),
                "scope": rule.scope,
                **_shown(BY_RULE.get(rule.id)),
            }
            for rule in result.rules
        ],
        **({"changes": [_change(one) for one in result.changes]} if result.changes else {}),
    }


def _shown(advisory: Advisory | None) -> dict[str, Any]:
    if advisory is None:
        return {}
    return {"shown_by": list(advisory.shown_by), "unseen": advisory.unseen}


def _change(change: Change) -> dict[str, Any]:
    return {
        "id": change.id,
        "title": change.title,
        "commits": list(change.commits),
        "cve": list(change.cve),
        "since": change.since,
        "stable": list(change.stable),
        "broken": list(change.broken),
        "until": change.until,
        "reverted": list(change.reverted),
        "side": change.side.value,
        "evidence": change.evidence.value,
        "source": change.source,
    }
