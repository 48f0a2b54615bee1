"""QEMU's wire format: framing, description, values.

The code knows nothing of x86.  One table does, :mod:`qemu_svm.stream.vmstate.builtin_x86`:
the layout of vCPUs in streams that do not describe it.
"""

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
