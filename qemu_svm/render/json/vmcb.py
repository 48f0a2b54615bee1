"""Fields of a VMCB's page as JSON: for ``vmruns``."""

from __future__ import annotations

from qemu_svm.render.json.base import Digits, Hex, digits, hex_text


def content(value: int | bytes) -> Hex | Digits:
    """Return a number as ``"0x…"``, bytes as hex digits."""
    return digits(value) if isinstance(value, bytes) else hex_text(value)
