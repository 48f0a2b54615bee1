"""Numbers as the JSON documents have them."""

from __future__ import annotations


def hex_text(value: int) -> str:
    """``0x…``, with a sign if it is negative."""
    return f"{value:#x}" if value >= 0 else f"-{-value:#x}"
