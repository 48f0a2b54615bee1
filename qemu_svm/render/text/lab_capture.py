"""The report of ``lab capture``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.lab.guests.catalogue import GuestState
from qemu_svm.lab.record import CaptureRecords
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import HEADING, entry


def render(result: CaptureRecords) -> Iterable[Text]:
    """Return what was captured, and on what."""
    for record in result.records:
        guest = record.origin.guest
        yield Text(f"{printable(record.file)}: guest {guest.name}: {guest.about}", HEADING)
        for index, (state, flags) in enumerate(zip(guest.vcpus, record.flags, strict=True)):
            yield entry(f"vCPU {index}", _vcpu(state, flags))
        yield entry("size", f"{record.size} bytes, sha256 {record.sha256[:16]}…")
        yield entry("saves", f"{record.tries} until the guest was in the wanted state")
        for name, version in record.origin.versions.items():
            yield entry(name, version)


def _vcpu(state: GuestState, flags: int | None) -> str:
    level = "in SMM" if state.smm else "in L2" if state.guest_mode else "in L1"
    parts = [level] if state.gif is None else [level, f"GIF {int(state.gif)}"]
    if flags is not None:
        parts.append(f"nested flags {flags:#x}")
    return ", ".join(parts)
