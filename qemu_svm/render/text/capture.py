"""The report of ``capture``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.qmp.capture import Captured
from qemu_svm.render.escape import printable
from qemu_svm.render.sizes import size_words
from qemu_svm.render.text.base import HEADING, entry


def render(result: Captured) -> Iterable[Text]:
    """Return what was written, and the state of the guest."""
    yield Text(printable(result.files[0]), HEADING).append(": complete")
    yield entry("size", size_words(result.size))
    if len(result.files) > 1:
        yield entry("channels", f"{len(result.files) - 1}, in {result.files[1]} and so on")
    yield entry("time", f"{result.seconds:.2f} s")
    yield entry("QEMU", str(result.version))
    yield entry("guest", _guest(result))
    for path in result.left:
        yield entry(
            "note",
            f"an earlier capture was killed and left {path}, which is "
            "incomplete: svmstream doctor --put-back removes it",
        )


def _guest(done: Captured) -> str:
    if done.after.running:
        pause = done.stopped
        return "running" + (f"; was stopped for {pause * 1000:.0f} ms" if pause else "")
    if done.after.state == done.before.state:
        return f"{done.after.state}, as before"
    if done.after.state == "postmigrate":
        return f"still stopped (was {done.before.state}; QEMU calls it postmigrate now)"
    return f"{done.after.state} (was {done.before.state})"
