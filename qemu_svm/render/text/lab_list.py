"""The report of ``lab list``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.lab.inventory import Inventory
from qemu_svm.lab.suites.cache import Built
from qemu_svm.lab.suites.catalogue import Suite
from qemu_svm.render.escape import printable
from qemu_svm.render.sizes import size_words
from qemu_svm.render.text.base import FAINT, HEADING, columns


def render(result: Inventory) -> Iterable[Text]:
    """Return the suites, the kernels, and the boxes that are up."""
    yield Text(f"Suites in {printable(str(result.folder))}", HEADING)
    yield from columns([_suite(suite, built) for suite, built in result.suites])
    suites = (built for _suite_name, built in result.suites)
    for built in (*suites, *result.kernels):
        for remark in built.manifest.remarks if built is not None else ():
            yield Text(f"  {printable(remark)}", FAINT)
    yield Text()
    if result.kernels:
        yield Text("Kernels by their version", HEADING)
        yield from columns([_kernel(built) for built in result.kernels])
        yield Text()
    yield Text("Boxes that are up" if result.boxes else "No box is up", HEADING)
    yield from columns(
        [
            [box.name, f"Linux {box.versions['kernel']}", f"QEMU {box.versions['qemu']}",
             f"share {box.share}"]
            for box in result.boxes
        ]
    )  # fmt: skip


def _kernel(built: Built) -> list[str | Text]:
    manifest = built.manifest
    return [printable(built.name), size_words(built.size()), f"Linux {manifest.release}",
            f"from {printable(manifest.suite)}"]  # fmt: skip


def _suite(suite: Suite, built: Built | None) -> list[str | Text]:
    if built is None:
        words = Text(f"not built: Linux {suite.kernel}, QEMU {suite.qemu}", FAINT)
        return [suite.name, "-", words]
    manifest = built.manifest
    size = size_words(built.size())
    return [suite.name, size, f"Linux {manifest.kernel}", f"QEMU {manifest.qemu}"]
