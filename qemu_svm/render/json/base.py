"""What the JSON documents of all verbs have in common (``docs/json.md``).

Registers, addresses, flags and masks are strings ``"0x…"``; counts, sizes,
offsets and versions are numbers.  Fields may be added within a version; none
is renamed or removed.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final, NewType

from qemu_svm.errors import StreamError
from qemu_svm.rules import Finding
from qemu_svm.source import Source
from qemu_svm.source.details import LibvirtDetails, SnapshotDetails
from qemu_svm.stream import Value
from qemu_svm.x86.segments import Segment

SCHEMA_VERSION: Final = 1
MOST_BYTES = 1 << 20
"""Bytes of a field that are in a document."""


Hex = NewType("Hex", str)
"""``0x…``, with a sign if it is negative: a register, an address, flags, a mask."""
Digits = NewType("Digits", str)
"""Bytes as hex digits."""

TextType = NewType("TextType", str)
"""The type of a field that is text; no number has such a type."""


def hex_text(value: int) -> Hex:
    """Return ``0x…``, with a sign if it is negative."""
    return Hex(f"{value:#x}" if value >= 0 else f"-{-value:#x}")


def digits(data: bytes) -> Digits:
    """Return bytes as hex digits."""
    return Digits(data.hex())


def optional_hex(value: int | None) -> Hex | None:
    """Return ``0x…``, or None for None."""
    return None if value is None else hex_text(value)


def typed(value: Value) -> dict[str, Any]:
    """Return type and value of a field, see :func:`leaf`."""
    found = value.value
    if isinstance(found, str):
        return {"type": TextType(value.type), "value": found}
    return {"type": value.type, "value": _plain(found)}


def leaf(value: Value) -> Hex | list[Hex] | Digits | str | bool | None:
    """Return a field's value: numbers and tuples of them as ``0x…``, bytes as hex digits.

    Of more than 1 MiB it is the first; the field's size says how many bytes there are.
    """
    found = value.value
    return found if isinstance(found, str) else _plain(found)


def _plain(found: int | bytes | tuple[int, ...] | None) -> Hex | list[Hex] | Digits | bool | None:
    if isinstance(found, bytes):
        return digits(found[:MOST_BYTES])
    if isinstance(found, tuple):
        return [hex_text(item) for item in found]
    if isinstance(found, bool) or not isinstance(found, int):
        return found
    return hex_text(found)


def segment(value: Segment) -> dict[str, Hex]:
    """Return the object of a segment register, GDTR or IDTR."""
    return {
        "selector": hex_text(value.selector),
        "base": hex_text(value.base),
        "limit": hex_text(value.limit),
        "attrib": hex_text(value.attrib),
    }


def register(value: int | Segment) -> Hex | dict[str, Hex]:
    """Return a register: a number as ``"0x…"``, a segment as its object."""
    return segment(value) if isinstance(value, Segment) else hex_text(value)


def source(found: Source) -> dict[str, Any]:
    """Return where a stream was found; ``libvirt`` and ``snapshot`` are null elsewhere."""
    details = found.details
    return {
        "path": found.path,
        "size": found.size(),
        "container": found.container,
        "compression": found.compression,
        "layers": list(found.layers),
        "stream_offset": found.stream_offset,
        "libvirt": asdict(details) if isinstance(details, LibvirtDetails) else None,
        "snapshot": asdict(details) if isinstance(details, SnapshotDetails) else None,
    }


def finding(found: Finding) -> dict[str, Any]:
    """Return the object of a finding."""
    return {
        "severity": found.severity.value,
        "rule": found.rule,
        "message": found.message,
        "offset": found.offset,
    }


def problem(error: StreamError) -> dict[str, Any]:
    """Return the object of an error in an input."""
    return {"rule": error.rule, "message": str(error), "offset": error.offset}
