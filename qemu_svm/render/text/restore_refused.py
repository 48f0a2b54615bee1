"""The report of a ``restore`` that QEMU refused."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.findings.results import RestoreRefusal
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import HEADING, entry


def render(result: RestoreRefusal) -> Iterable[Text]:
    """Return QEMU's message beside the part of the stream that it is about."""
    yield Text(printable(result.path), HEADING).append(": refused by QEMU", "bold red")
    for line in result.reason or ["nothing: see its own log"]:
        yield entry("QEMU says", line)
    for finding in result.findings:
        yield entry("stream", finding.message)
