"""The report of ``record``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.recorder.alone import counts
from qemu_svm.recorder.record import Recorded
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import HEADING


def render(result: Recorded) -> Iterable[Text]:
    """Return a line for each recording."""
    for one in result.processes:
        words = f": process {one.pid}, {counts(one.state)} ({result.how}, {result.seconds:.1f} s)"
        yield Text(printable(one.file), HEADING).append(words)
