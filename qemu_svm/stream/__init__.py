"""QEMU's wire format: framing, description, values.  Knows nothing of x86."""

from __future__ import annotations

from qemu_svm.stream.model import Stream, Walk, read_stream
from qemu_svm.stream.records import Configuration, Kind, LayoutOrigin, RamBlock, RamPages, Record
from qemu_svm.stream.vmstate.values import Value

__all__ = [
    "Configuration",
    "Kind",
    "LayoutOrigin",
    "RamBlock",
    "RamPages",
    "Record",
    "Stream",
    "Value",
    "Walk",
    "read_stream",
]
