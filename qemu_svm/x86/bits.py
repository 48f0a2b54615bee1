"""Numbers whose bits have names.

A table lists ``(bit, name)``; fields of several bits are not named.  Bits without a
name are shown by their number, never dropped.
"""

from __future__ import annotations

from collections.abc import Mapping


class Bits:
    """Names for the bits of one register or flags word.

    :param names: bit number to name.
    :param ignore: mask of bits that are not flags (multi-bit fields).
    """

    def __init__(self, names: Mapping[int, str], *, ignore: int = 0) -> None:
        self._names = dict(sorted(names.items()))
        self._ignore = ignore

    def names(self, value: int) -> list[str]:
        """Name the bits set in ``value``, lowest first; ``bit 13`` if unnamed."""
        found = []
        rest = value & ~self._ignore
        while rest:
            bit = (rest & -rest).bit_length() - 1
            rest &= rest - 1
            found.append(self._names.get(bit, f"bit {bit}"))
        return found

    def items(self) -> list[tuple[int, str]]:
        """Return ``(bit, name)`` pairs."""
        return list(self._names.items())

    def mask(self, *names: str) -> int:
        """Return the mask of the bits called ``names``.

        :raises KeyError: a name that the table lacks.
        """
        numbers = {name: bit for bit, name in self._names.items()}
        value = 0
        for name in names:
            value |= 1 << numbers[name]
        return value
