"""The reports of ``check``: findings, and the rules themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.text import Text

from qemu_svm.findings.check import Report, ranges, summary
from qemu_svm.machine import Machine
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, STYLES, columns, entry
from qemu_svm.rules import Rule, Severity

_ORDER = {severity: place for place, severity in enumerate(Severity)}


def report(machine: Machine, found: Report) -> Iterable[Text]:
    """Verdict first, then what was found, worst first."""
    path = printable(machine.stream.source.path)
    state = "" if machine.stream.complete else " (NOT COMPLETE)"
    yield Text(f"{path}: {printable(machine.name or 'unknown machine')}{state}", HEADING)
    if not found.verdicts:
        yield Text("  no vCPU with SVM state to judge")
    for index in found.verdicts:
        vcpu = next(vcpu for vcpu in machine.vcpus if vcpu.index == index)
        mode = "in guest mode" if vcpu.guest_mode else "not in guest mode"
        yield Text(f"  vCPU {index} ({mode}): {summary(found, index)}")
    yield Text()
    if not found.findings:
        yield Text("No findings.")
    for finding in sorted(found.findings, key=lambda f: _ORDER[f.severity]):
        line = Text("  ").append(finding.severity.value, STYLES[finding.severity])
        line.append(f" {finding.rule}", HEADING)
        if finding.offset is not None:
            line.append(f" at {finding.offset:#x}")
        yield line.append(f": {printable(finding.message)}")
        if finding.kernels:
            yield Text(f"    kernels: {ranges(finding.kernels)}", FAINT)
        yield Text(f"    do: {finding.do}", FAINT)


def rule_table(rules: Sequence[Rule]) -> Iterable[Text]:
    """All rules, one a line."""
    yield from columns(
        [[rule.id, Text(rule.severity.value, STYLES[rule.severity]), rule.fails_when]
         for rule in rules],
        ("rule", "severity", "fails or applies when"),
    )  # fmt: skip


def explain(rule: Rule) -> Iterator[Text]:
    """Everything about one rule."""
    yield Text(f"{rule.id} ({rule.kind.value}, {rule.severity.value})", HEADING)
    yield entry("when", rule.fails_when)
    yield entry("then", rule.consequence)
    yield entry("do", rule.advice)
    yield entry("kernels", ranges(rule.kernels) if rule.kernels else rule.scope or "all")
    yield entry("source", rule.source)
