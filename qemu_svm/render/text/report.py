"""What ``report`` prints: the file, and what is in it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from qemu_svm.findings.overview import Written
from qemu_svm.render.escape import printable
from qemu_svm.render.sizes import size_words
from qemu_svm.render.text.base import HEADING, VERDICTS, entry


def render(result: Written) -> Iterator[Text]:
    """Return the name of the page, the verdict, and what the page contains."""
    found = result.overview
    yield Text(f"{printable(result.path)}: {size_words(result.size)}", HEADING)
    if found.verdict is not None:
        where = found.destination or "the worst of all kernels"
        verdict = Text(found.verdict.value, VERDICTS[found.verdict])
        yield entry("verdict", verdict.append(f" ({printable(where)})", ""))
    if not found.complete:
        yield entry("stream", "NOT COMPLETE")
    yield entry("contains", "; ".join(found.contents))
    if result.redacted:
        yield entry("left out", ", ".join(result.redacted))
