"""Strings out of a stream, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """Replace everything that a terminal might obey by backslash escapes."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )
