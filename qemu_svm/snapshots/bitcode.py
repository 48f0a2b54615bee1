"""Columns of ``bitcode``, as its interface for serde writes them.

Every member of a structure is a column of its own, with the values of all structures; columns
follow one another in the order in which their first values were written, and nothing names them.
A column of bytes of three or more, and one of larger integers, begins with a byte that says how
the values are packed.

Source: bitcode 0.6.9, ``src/pack.rs``, ``pack_ints.rs``, ``length.rs``, ``serde/ser.rs``.
"""

from __future__ import annotations

from collections.abc import Sequence

_STATES = (256, 16, 6, 4, 3, 2)
"""Values that a packed byte's parts have, by the packing's number."""
_IN_A_BYTE = {16: 2, 6: 3, 4: 4, 3: 5, 2: 8}
_LONG = 255
_ALONE = 2
"""Bytes of which so many are never packed."""
_REPEATED = 5
"""So many equal values are not written as their difference from the least."""
_WIDTHS = (8, 4, 2, 1)


class ColumnError(Exception):
    """What is there is not such a column; whoever reads columns tries another place then."""


class Columns:
    """Columns from a place on.

    :raises ColumnError: (every method) the input ends, or a packing does not exist.
    """

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self.at = at

    def octets(self, count: int) -> bytes:
        """Read a column of ``count`` bytes."""
        if count <= _ALONE:
            return self._take(count)
        head = self._take(1)[0]
        number = (head + 1) // 2
        if number >= len(_STATES):
            raise ColumnError
        least = self._take(1)[0] if head & 1 else 0
        states = _STATES[number]
        if states == 256:
            return self._take(count)
        each = _IN_A_BYTE[states]
        found = bytearray()
        for byte in self._take(-(-count // each)):
            rest = byte
            for _ in range(each):
                rest, value = divmod(rest, states)
                found.append(value + least & 0xFF)
        return bytes(found[:count])

    def integers(self, count: int, width: int) -> Sequence[int]:
        """Read a column of ``count`` unsigned integers of 4 or 8 bytes."""
        if not count:
            return ()
        head = self._take(1)[0]
        place = _WIDTHS.index(width) + (head + 1) // 2
        if place >= len(_WIDTHS):
            raise ColumnError
        least = int.from_bytes(self._take(width), "little") if head & 1 else 0
        packed = _WIDTHS[place]
        if packed == 1:
            return tuple(one + least for one in self.octets(count))
        data = self._take(count * packed)
        return tuple(
            int.from_bytes(data[at : at + packed], "little") + least
            for at in range(0, len(data), packed)
        )

    def lengths(self, count: int) -> list[int]:
        """Read a column of ``count`` lengths of strings and lists."""
        small = self.octets(count)
        large = iter(self.integers(small.count(_LONG), 8))
        return [next(large) if one == _LONG else one for one in small]

    def blobs(self, count: int, size: int) -> list[bytes]:
        """Read ``count`` byte strings, each of which has ``size`` bytes."""
        if any(one != size for one in self.lengths(count)):
            raise ColumnError
        data = self.octets(count * size)
        return [data[at : at + size] for at in range(0, len(data), size)]

    def _take(self, size: int) -> bytes:
        found = self._data[self.at : self.at + size]
        if len(found) < size:
            raise ColumnError
        self.at += size
        return found


def equal_lengths(length: int, count: int) -> bytes:
    """Return a column of ``count`` lengths that are all the same."""
    small = min(length, _LONG)
    made = _equal_bytes(small, count)
    if length < _LONG:
        return made
    if length > 0xFFFF:
        raise ValueError(length)
    if count <= _REPEATED:
        return made + b"\x04" + length.to_bytes(2, "little") * count
    return made + b"\x05" + length.to_bytes(8, "little") + _equal_bytes(0, count)


def _equal_bytes(value: int, count: int) -> bytes:
    if count <= _ALONE:
        return bytes([value]) * count
    highest = (1, 2, 3, 5, 15)
    number = next((5 - at for at, most in enumerate(highest) if value <= most), 0)
    if number == 5 or count <= _REPEATED:
        states = _STATES[number]
        if states == 256:
            return b"\0" + bytes([value]) * count
        each = _IN_A_BYTE[states]
        full = sum(value * states**at for at in range(each))
        rest = count % each
        end = bytes([sum(value * states**at for at in range(rest))]) if rest else b""
        return bytes([2 * number]) + bytes([full]) * (count // each) + end
    return bytes([9, value]) + bytes(-(-count // 8))
