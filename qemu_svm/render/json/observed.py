"""What KVM reports of a vCPU's state as JSON: for ``replay`` and ``lab conform``."""

from __future__ import annotations

from typing import Any

from qemu_svm.render.json.base import Hex, hex_text, segment
from qemu_svm.x86.segments import Segment

COUNTS = frozenset({"nested.size", "smm", "shadow"})


def observed(name: str, value: Any) -> Hex | dict[str, Hex] | str | int | None:
    """Return a part of the state: numbers as ``"0x…"``, segments and tables as objects."""
    if isinstance(value, list) and len(value) == 4:
        return segment(Segment(*value))
    if isinstance(value, list):
        base, limit = value
        return {"base": hex_text(base), "limit": hex_text(limit)}
    if isinstance(value, int) and name not in COUNTS:
        return hex_text(value)
    other: str | int | None = value
    return other
