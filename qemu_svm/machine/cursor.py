"""A place in bytes that are at hand, and the values read there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from qemu_svm.errors import Malformed
from qemu_svm.stream.vmstate.values import Leaf, Value

_KINDS: dict[str, tuple[int, Literal["big", "little"], str]] = {
    "u8": (1, "big", "uint8"),
    "u16": (2, "big", "uint16"),
    "u32": (4, "big", "uint32"),
    "u64": (8, "big", "uint64"),
    "le16": (2, "little", "le16"),
    "le32": (4, "little", "le32"),
    "le64": (8, "little", "le64"),
}
"""Size, byte order and name of the type."""


class Cursor:
    """Reads ``data`` front to back.

    :param base: offset of ``data`` in the stream.
    :param what: what is read, for errors.
    """

    def __init__(self, data: bytes, base: int, what: str, at: int = 0) -> None:
        self.data = data
        self.base = base
        self.what = what
        self.at = at

    @property
    def offset(self) -> int:
        """Offset in the stream."""
        return self.base + self.at

    @property
    def left(self) -> int:
        """Bytes that are left."""
        return len(self.data) - self.at

    def take(self, size: int, name: str) -> bytes:
        """Return the next ``size`` bytes.

        :raises Malformed: there are fewer.
        """
        if not 0 <= size <= self.left:
            raise self.malformed(name, f"{size} bytes", f"{self.left}")
        self.at += size
        return self.data[self.at - size : self.at]

    def peek(self, size: int) -> bytes:
        """Return up to ``size`` bytes without moving."""
        return self.data[self.at : self.at + size]

    def malformed(self, name: str, expected: str, found: str) -> Malformed:
        """Return an error about the field ``name`` at this place."""
        return Malformed(
            f"the state of the {self.what} is not as expected",
            offset=self.offset,
            field=name,
            expected=expected,
            found=found,
        )

    def number(self, name: str, kind: str, type_: str = "") -> Value:
        """Read a number.

        :param kind: ``u8`` to ``u64`` (big-endian), ``le16`` to ``le64``.
        :param type_: type of the value, if not ``kind``'s.
        """
        at = self.offset
        size, order, plain = _KINDS[kind]
        found = int.from_bytes(self.take(size, name), order)
        return Value(name, type_ or plain, at, size, found)

    def bytes(self, name: str, size: int, type_: str = "buffer") -> Value:
        """Read bytes as they are."""
        at = self.offset
        return Value(name, type_, at, size, self.take(size, name))

    def numbers(self, name: str, kind: str, count: int) -> Value:
        """Read an array of numbers."""
        at = self.offset
        size, order, plain = _KINDS[kind]
        data = self.take(size * count, name)
        found = tuple(int.from_bytes(data[i : i + size], order) for i in range(0, len(data), size))
        return Value(name, f"{plain}[{count}]", at, len(data), found)

    def rows(self, table: str, types: dict[str, str] | None = None) -> list[Value]:
        """Read fields listed as ``name:kind``, ``name:kind*count`` or ``name:*size`` (bytes).

        :param types: types of values by name, where they are not the kind's.
        """
        found = []
        for row in table.split():
            name, _, kind = row.partition(":")
            kind, star, count = kind.partition("*")
            if not kind:
                found.append(self.bytes(name, int(count)))
            elif star:
                found.append(self.numbers(name, kind, int(count)))
            else:
                found.append(self.number(name, kind, (types or {}).get(name, "")))
        return found


def group(
    name: str, type_: str, start: int, children: Iterable[Value], value: Leaf = None
) -> Value:
    """A node over consecutive children.

    :param start: offset of the first, for an empty node.
    """
    members = tuple(children)
    end = members[-1].end if members else start
    return Value(name, type_, start, end - start, value, members)
