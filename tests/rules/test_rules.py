"""The types: what a rule makes of itself."""

from __future__ import annotations

import sys
from subprocess import run

from qemu_svm.rules import Finding, Rule, RuleKind, Severity

RULE = Rule(
    "T-99",
    Severity.WARNING,
    RuleKind.ORDER,
    "it is so",
    "that follows",
    "do this",
    "measured",
    in_trace=Severity.ERROR,
)


def test_a_finding_has_the_severity_and_the_advice_of_its_rule() -> None:
    assert RULE.finding("m", 5, path="vcpu0", kernels=("6.1",)) == Finding(
        Severity.WARNING, "T-99", "m", 5, "vcpu0", "do this", ("6.1",)
    )
    assert RULE.finding("m", severity=Severity.INFO).severity is Severity.INFO
    assert RULE.finding("m").offset is None


def test_severity_in_a_trace() -> None:
    assert RULE.trace_severity is Severity.ERROR
    plain = Rule("T-98", Severity.INFO, RuleKind.ORDER, "so", "", "", "measured")
    assert plain.trace_severity is Severity.INFO
    assert plain.consequence == "nothing: either way is right"
    assert plain.advice == "nothing"


def test_the_room_imports_no_other() -> None:
    code = (
        "import sys, qemu_svm.rules; print(*(m for m in sys.modules if m.startswith('qemu_svm')))"
    )
    done = run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert set(done.stdout.split()) == {"qemu_svm", "qemu_svm.rules"}
