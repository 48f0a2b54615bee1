"""Names of vmstate types that have a meaning on the wire.

Everything else is ``size`` raw bytes.  Some names mislead: ``int64 equal`` is
unsigned, and the ``le`` of ``int32 le`` means "less or equal".

Source: QEMU ``migration/vmstate-types.c``, 5.2 to 11.1.
"""

from __future__ import annotations

from typing import NamedTuple


class Scalar(NamedTuple):
    """A big-endian number of ``size`` bytes."""

    size: int
    signed: bool = False


SCALARS: dict[str, Scalar] = {
    "bool": Scalar(1),
    "int8": Scalar(1, signed=True),
    "int16": Scalar(2, signed=True),
    "int32": Scalar(4, signed=True),
    "int64": Scalar(8, signed=True),
    "uint8": Scalar(1),
    "uint16": Scalar(2),
    "uint32": Scalar(4),
    "uint64": Scalar(8),
    "uint8 equal": Scalar(1),
    "uint16 equal": Scalar(2),
    "int32 equal": Scalar(4, signed=True),
    "uint32 equal": Scalar(4),
    "int64 equal": Scalar(8),
    "int32 le": Scalar(4, signed=True),
    "CPU_Double_U": Scalar(8),
    "timer": Scalar(8, signed=True),
    "int32_as_uint16": Scalar(2),
    "uint16_from_uint8": Scalar(1),
    "nullptr": Scalar(1),
    "ptr-marker": Scalar(1),
}


def code(scalar: Scalar) -> str:
    """Return the code of a number for :mod:`struct`."""
    letter = {1: "b", 2: "h", 4: "i", 8: "q"}[scalar.size]
    return letter if scalar.signed else letter.upper()


LISTS = frozenset({"qtailq", "qlist"})
"""A byte 01 before each element, then a byte 00."""

TREE = "gtree"
"""be32 count, elements (01, key, value), 00."""

COUNTED_STRING = "capability"
COUNTED_BYTES = "GByteArray"

NULLS = frozenset({"nullptr"})
"""Types of NULL pointers in an array of pointers."""
