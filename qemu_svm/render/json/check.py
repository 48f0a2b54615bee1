"""The JSON document of ``check FILE``, version 1 (``docs/json.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.check import summary
from qemu_svm.findings.results import CheckReport
from qemu_svm.model.profiles import ranges
from qemu_svm.render.json.base import SCHEMA_VERSION


def render(result: CheckReport) -> dict[str, Any]:
    """Return the document."""
    stream = result.machine.stream
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": stream.source.path},
        "complete": stream.complete,
        "findings": [
            {
                "rule": finding.rule,
                "severity": finding.severity.value,
                "message": finding.message,
                "offset": finding.offset,
                "kernels": list(finding.kernels),
                "do": finding.do,
            }
            for finding in result.findings
        ],
        "releases": {name: ranges([name]) for one in result.verdicts.values() for name in one},
        "vcpus": [
            {
                "index": index,
                "summary": summary(result.report, index),
                "kernels": {
                    name: {
                        "verdict": judgement.verdict.value,
                        "accepted": judgement.verdict.value != "refused",
                        "text": list(judgement.lines),
                    }
                    for name, judgement in verdicts.items()
                },
            }
            for index, verdicts in result.verdicts.items()
        ],
    }
