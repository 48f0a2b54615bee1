"""The reports of ``check --rules`` and ``check --explain``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.text import Text

from qemu_svm.findings.advisories import BY_RULE
from qemu_svm.findings.results import RuleList
from qemu_svm.model.profiles import ranges
from qemu_svm.render.text.base import HEADING, STYLES, columns, entry
from qemu_svm.rules import Rule


def render(result: RuleList) -> Iterable[Text]:
    """Return everything about a single rule, or one line for each of several."""
    rules = result.rules
    if result.changes:
        return _changes(result)
    if len(rules) == 1:
        return _explained(rules[0])
    return columns(
        [[rule.id, Text(rule.severity.value, STYLES[rule.severity]), rule.fails_when]
         for rule in rules],
        ("rule", "severity", "fails or applies when"),
    )  # fmt: skip


def _changes(result: RuleList) -> Iterator[Text]:
    for change in result.changes:
        yield Text(", ".join([*change.cve, *change.commits]) or change.id, HEADING)
        yield entry("since then", change.title)
        yield entry("fixed in", change.fixed_in)
        if change.broken:
            yield entry("broken since", ", ".join(change.broken))
        if change.until:
            gone = ", ".join([*change.reverted, change.until])
            yield entry("reverted in", gone)
        yield entry("kernel of", change.side.value)
        yield entry("evidence", f"{change.evidence.value}: {change.source}")
    for rule in result.rules:
        yield Text()
        yield from _explained(rule)


def _explained(rule: Rule) -> Iterator[Text]:
    yield Text(f"{rule.id} ({rule.kind.value}, {rule.severity.value})", HEADING)
    yield entry("when", rule.fails_when)
    yield entry("then", rule.consequence)
    yield entry("do", rule.advice)
    yield entry("kernels", ranges(rule.kernels) if rule.kernels else rule.scope or "all")
    advisory = BY_RULE.get(rule.id)
    if advisory is not None:
        nothing = f"nothing: {advisory.unseen}"
        yield entry("shown by", ", ".join(advisory.shown_by) or nothing)
    yield entry("source", rule.source)
