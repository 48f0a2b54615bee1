"""The report of ``lab restore``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.lab.results import BoxRestore
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, STYLES, entry
from qemu_svm.rules import Severity


def render(result: BoxRestore) -> Iterable[Text]:
    """Return the outcome of a restore, and which rules explain a failure."""
    outcome, why = result.outcome, result.why
    style = HEADING if outcome.good else STYLES[Severity.ERROR]
    yield Text(f"{printable(result.path)}: {outcome.verdict.value}", style)
    yield entry("reason", outcome.reason)
    if outcome.guest is not None:
        yield entry("guest", outcome.guest)
    for name, version in result.versions.items():
        yield entry(name, version)
    if outcome.good:
        return
    yield Text("  rules that apply here:" if why else "  no rule of this project explains it")
    for finding in why:
        line = Text(f"    {printable(finding.message)}").append(f" ({finding.rule})", FAINT)
        yield line
        yield Text(f"      do: {finding.do}", FAINT)
