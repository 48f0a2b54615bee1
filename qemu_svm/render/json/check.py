"""The JSON documents of ``check``, version 1 (``docs/json.md``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qemu_svm.findings.check import Report, summary
from qemu_svm.machine import Machine
from qemu_svm.render.json.inspect import SCHEMA_VERSION
from qemu_svm.rules import Rule


def document(machine: Machine, found: Report) -> dict[str, Any]:
    """The document of ``check FILE``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": machine.stream.source.path},
        "complete": machine.stream.complete,
        "findings": [
            {
                "rule": finding.rule,
                "severity": finding.severity.value,
                "message": finding.message,
                "offset": finding.offset,
                "kernels": list(finding.kernels),
                "do": finding.do,
            }
            for finding in found.findings
        ],
        "vcpus": [
            {
                "index": index,
                "summary": summary(found, index),
                "kernels": {
                    name: {
                        "verdict": judgement.verdict.value,
                        "accepted": judgement.verdict.value != "refused",
                        "text": list(judgement.lines),
                    }
                    for name, judgement in verdicts.items()
                },
            }
            for index, verdicts in found.verdicts.items()
        ],
    }


def rules(chosen: Sequence[Rule]) -> dict[str, Any]:
    """The document of ``check --rules`` and ``--explain``."""
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
            }
            for rule in chosen
        ],
    }
