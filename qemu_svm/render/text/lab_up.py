"""The report of ``lab up``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.lab.results import BoxReport
from qemu_svm.render.escape import printable


def render(result: BoxReport) -> Iterable[Text]:
    """Return one line about a box that has started."""
    box = result.box
    yield Text(f"{box.name} is up: Linux {box.versions['kernel']}, share {printable(box.share)}")
