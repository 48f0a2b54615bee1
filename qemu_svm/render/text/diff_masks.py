"""The report of ``diff --list-masks``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.findings.results import MaskList
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import HEADING, entry


def render(result: MaskList) -> Iterable[Text]:
    """Return every mask: its id, reason and source, and below it its patterns."""
    last = ""
    for mask in result.masks:
        if mask.id != last:
            yield Text(mask.id, HEADING)
            yield entry("reason", mask.reason)
            yield entry("source", mask.source)
        last = mask.id
        yield Text(f"    {printable(mask.pattern)}")
