"""Layout of the containers' fixed structures, for parsing and building.

Sources: libvirt ``src/qemu/qemu_saveimage.h`` (11.3.0) for the save image,
QEMU ``docs/interop/qcow2.rst`` (10.2.2) for qcow2.
"""

from __future__ import annotations

from typing import Any

from construct import (
    Bytes,
    Const,
    Construct,
    Int16ub,
    Int32ub,
    Int32ul,
    Int64ub,
    Struct,
)


def _save_image(number: Construct[int, int]) -> Construct[Any, Any]:
    return Struct(
        "magic" / Bytes(16),
        "version" / number,
        "data_length" / number,
        "was_running" / number,
        "format" / number,
        "cookie_offset" / number,
        "unused" / Bytes(56),
    )


SAVE_IMAGES = {"little": _save_image(Int32ul), "big": _save_image(Int32ub)}
"""libvirt's header, 92 bytes, in the byte order of the host that wrote it."""

QcowHeader = Struct(
    "magic" / Const(b"QFI\xfb"),
    "version" / Int32ub,
    "backing_file_offset" / Int64ub,
    "backing_file_size" / Int32ub,
    "cluster_bits" / Int32ub,
    "size" / Int64ub,
    "crypt_method" / Int32ub,
    "l1_size" / Int32ub,
    "l1_table_offset" / Int64ub,
    "refcount_table_offset" / Int64ub,
    "refcount_table_clusters" / Int32ub,
    "nb_snapshots" / Int32ub,
    "snapshots_offset" / Int64ub,
)
"""The first 72 bytes, common to versions 2 and 3."""

QcowHeader3 = Struct(
    "incompatible_features" / Int64ub,
    "compatible_features" / Int64ub,
    "autoclear_features" / Int64ub,
    "refcount_order" / Int32ub,
    "header_length" / Int32ub,
)
"""Fields that version 3 adds at byte 72."""

Snapshot = Struct(
    "l1_table_offset" / Int64ub,
    "l1_size" / Int32ub,
    "id_size" / Int16ub,
    "name_size" / Int16ub,
    "seconds" / Int32ub,
    "nanoseconds" / Int32ub,
    "vm_clock_ns" / Int64ub,
    "vm_state_size" / Int32ub,
    "extra_size" / Int32ub,
)
"""The first 40 bytes of an entry of the snapshot table; extra data, id and name
follow, padded to 8 bytes."""

SnapshotExtra = Struct("vm_state_size" / Int64ub, "disk_size" / Int64ub)
"""Start of the extra data, if it has 16 bytes or more."""
