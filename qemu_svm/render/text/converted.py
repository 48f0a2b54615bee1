"""The report of ``record --convert``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.recording.convert import Converted
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import HEADING


def render(result: Converted) -> Iterable[Text]:
    """Return one line."""
    words = {"binary": "binary", "jsonl": "JSON lines"}[result.form]
    redacted = ", redacted" if result.redacted else ""
    yield Text(printable(result.output), HEADING).append(
        f": {result.records} records, {words}{redacted}"
    )
