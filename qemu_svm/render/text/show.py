"""The report of ``show``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.findings.results import Shown
from qemu_svm.machine.virtio.device import device_in
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import HEADING, entry
from qemu_svm.render.text.values import ROW, fields, hexdump, words
from qemu_svm.render.text.virtio import device_lines
from qemu_svm.render.words import description


def render(result: Shown, *, verbose: bool) -> Iterable[Text]:
    """Return everything about one node of a stream.

    :param verbose: also fields that are reserved and zero.
    """
    place, raw = result.place, result.raw
    value = place.value
    yield Text(printable(place.path), HEADING)
    if about := description(place.path):
        yield entry("", about)
    yield entry("offset", f"{value.offset:#x} ({value.offset}), {value.size} bytes")
    yield entry("type", value.type)
    virtio = device_in(value)
    if virtio is not None:
        yield from device_lines(virtio)
    if value.children:
        yield Text()
        yield from fields(place, verbose=verbose)
        return
    if isinstance(value.value, bytes) or value.size > ROW:
        yield from hexdump(raw, value.offset)
    else:
        yield entry("raw", raw.hex(" "))
    if not isinstance(value.value, bytes) and value.value is not None:
        yield entry("value", words(place.path, value))
