"""Strings from a stream, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return a text with backslash escapes for everything that a terminal might obey."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
