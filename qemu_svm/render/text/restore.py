"""The report of a ``restore`` that succeeded."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.qmp.restore import RestoreReport
from qemu_svm.render.escape import printable
from qemu_svm.render.sizes import size_words
from qemu_svm.render.text.base import HEADING, entry


def render(result: RestoreReport) -> Iterable[Text]:
    """Return what was restored, and the state of the guest."""
    done = result.restored
    yield Text(printable(result.path), HEADING).append(f": restored by QEMU {done.version}")
    yield entry("size", f"{size_words(done.size)}, in {done.seconds:.2f} s")
    yield entry("guest", done.status.state)
    if result.socket is not None:
        yield entry("QMP", f"unix:{result.socket}")
