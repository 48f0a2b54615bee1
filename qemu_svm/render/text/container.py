"""The container of a stream, for the report of ``inspect``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import HEADING, entry
from qemu_svm.source import Source
from qemu_svm.source.details import LibvirtDetails, SnapshotDetails


def container_lines(source: Source) -> Iterable[Text]:
    """Return entries for the head of the report; none for a stream without a container."""
    details = source.details
    if isinstance(details, LibvirtDetails):
        running = "was running" if details.was_running else "was not running"
        finished = "" if details.finished else ", save NOT FINISHED"
        yield entry(
            "container",
            f"libvirt save image, version {details.version} ({details.byte_order}-endian), "
            f"format {details.format}, guest {running}{finished}",
        )
        if details.name is not None:
            uuid = "" if details.uuid is None else f", UUID {details.uuid}"
            yield entry("domain", f"{details.name}{uuid}")
        for note in details.notes:
            yield entry("", f"note: {note}")
    elif isinstance(details, SnapshotDetails):
        yield entry(
            "container",
            f"qcow2 version {details.image_version}, snapshot '{details.name}' (id {details.id}) "
            f"of {details.date}, VM clock {details.vm_clock_ns / 1e9:.3f} s",
        )
    if len(source.layers) > 1:
        yield entry("layers", " > ".join(source.layers))
    if source.stream_offset:
        yield entry("stream at", f"{source.stream_offset:#x} in its container")


def libvirt_lines(source: Source) -> Iterable[Text]:
    """Return the XML and the cookie of a libvirt save image."""
    details = source.details
    if not isinstance(details, LibvirtDetails):
        return
    for title, text in (("libvirt XML", details.xml), ("libvirt cookie", details.cookie)):
        if text is not None:
            yield Text()
            yield Text(title, HEADING)
            for line in text.splitlines():
                yield Text("  " + printable(line))
