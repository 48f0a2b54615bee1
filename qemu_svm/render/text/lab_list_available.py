"""The report of ``lab list --available``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from rich.text import Text

from qemu_svm.lab.inventory import Offer
from qemu_svm.lab.suites.kernels import Kernel
from qemu_svm.render.escape import printable
from qemu_svm.render.sizes import size_words
from qemu_svm.render.text.base import FAINT, HEADING, columns


def render(result: Offer) -> Iterable[Text]:
    """Return one line for each package, then those of which a part is missing."""
    complete = [one for one in result.kernels if one.complete]
    yield Text(f"Kernels that can be had from {printable(result.mirror)}", HEADING)
    yield from columns([_line(one, cached=one.version in result.cached) for one in complete])
    yield Text("  --kernel takes the first or the second column", FAINT)
    partly = [one for one in result.kernels if not one.complete]
    if partly:
        yield Text()
        yield Text("Listed, but with parts missing", HEADING)
        for series, some in groupby(partly, key=lambda one: one.order[:2]):
            updates = ", ".join(one.name_for_option for one in some)
            yield Text("  {}.{}: ".format(*series) + printable(updates), FAINT)


def _line(kernel: Kernel, *, cached: bool) -> list[str | Text]:
    where = Text("in the cache" if cached else size_words(kernel.size), FAINT)
    return [kernel.name_for_option, printable(kernel.version), printable(kernel.suite), where]
