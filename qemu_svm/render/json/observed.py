"""What KVM reports of a vCPU's state as JSON: for ``replay`` and ``lab conform``."""

from __future__ import annotations

from typing import Any

from qemu_svm.render.json.base import hex_text, segment
from qemu_svm.x86.segments import Segment

_COUNTS = frozenset({"nested.size", "smm", "shadow"})


def observed(name: str, value: Any) -> Any:
    """Return a part of the state: numbers as ``"0x…"``, segments and tables as objects."""
    if isinstance(value, list) and len(value) == 4:
        return segment(Segment(*value))
    if isinstance(value, list):
        base, limit = value
        return {"base": hex_text(base), "limit": hex_text(limit)}
    if isinstance(value, int) and name not in _COUNTS:
        return hex_text(value)
    return value
