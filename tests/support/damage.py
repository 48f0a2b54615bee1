"""Input that is damaged."""

from __future__ import annotations

from hypothesis import strategies as st


def damaged(data: st.DataObject, whole: bytes, most: int) -> bytes:
    """Return bytes of which one to ``most`` are other ones."""
    made = bytearray(whole)
    for _ in range(data.draw(st.integers(1, most))):
        made[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    return bytes(made)
