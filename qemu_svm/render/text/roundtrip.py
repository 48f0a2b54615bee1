"""The report of ``roundtrip``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.findings.results import RoundTrip
from qemu_svm.render.text import diff


def render(result: RoundTrip, *, all_differences: bool) -> Iterable[Text]:
    """Return the report of ``diff`` for the stream before and after.

    :param all_differences: also those that are masked.
    """
    yield Text(f"Through QEMU {result.version} and back, without running:")
    yield from diff.render(result.diff, all_differences=all_differences)
