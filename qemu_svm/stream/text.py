"""Names from the wire as text.

Names in a stream are bytes, ASCII in practice.  They are decoded once, here;
what is not UTF-8 becomes a backslash escape.  Control characters stay in the
text: whoever prints escapes them (:mod:`qemu_svm.render.escape`).
"""

from __future__ import annotations


def name_text(raw: bytes) -> str:
    """Decode a name from the wire."""
    return raw.decode("utf-8", "backslashreplace")
