"""Sizes for people."""

from __future__ import annotations


def size_words(size: int) -> str:
    """Return a size for people: ``32 MiB``, ``256 KiB``, ``4.5 GiB``."""
    for unit, name in (
        (1 << 50, "PiB"),
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ):
        if size >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size} bytes"
