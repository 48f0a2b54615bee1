"""C types of a kernel: where the members of a structure are.

Two formats describe them: :mod:`qemu_svm.inside.btf` and :mod:`qemu_svm.inside.dwarf`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

DEPTH = 16
"""Structures inside structures and names of types that are followed."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a structure.

    :param offset: from the start of the structure, in bits.
    :param bits: size in bits if it is a bit-field; else 0.
    :param type: its type, as :class:`Types` numbers it.
    """

    offset: int
    bits: int
    type: int


class Types(Protocol):
    """The types of one kernel."""

    def structure(self, name: str) -> int | None:
        """Return the structure with a name, or None."""
        ...

    def members(self, number: int) -> Mapping[str, Member]:
        """Return the members of a structure; those of anonymous ones are members of it too.

        A type that is no structure has none.
        """
        ...

    def size(self, number: int) -> int:
        """Return the size of a type in bytes."""
        ...

    def is_pointer(self, number: int) -> bool:
        """Return whether a type is a pointer."""
        ...

    def constant(self, name: str) -> int | None:
        """Return the value of an enumerator, or None."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member is.

    :param offset: from the start of the outer structure, in bytes.
    :param size: in bytes; of a bit-field: of the bytes that have it.
    :param shift: first bit of a bit-field.
    :param bits: number of bits of a bit-field; 0 if it is none.
    """

    offset: int
    size: int
    shift: int = 0
    bits: int = 0

    def value(self, data: bytes | bytearray, start: int = 0) -> int:
        """Return the number that is here.

        :param data: bytes of the outer structure.
        :param start: offset of ``data`` in it.
        """
        begin = self.offset - start
        number = int.from_bytes(data[begin : begin + self.size], "little")
        return number >> self.shift & (1 << self.bits) - 1 if self.bits else number


def find(types: Types, structure: str, path: str) -> Place | None:
    """Return where a member is, such as ``nested.save.cr3``; None if the kernel lacks it."""
    number = types.structure(structure)
    offset, bits = 0, 0
    for name in path.split("."):
        member = None if number is None else types.members(number).get(name)
        if member is None:
            return None
        offset, bits, number = offset + member.offset, member.bits, member.type
    assert number is not None
    if bits:
        start = offset // 8
        return Place(start, (offset % 8 + bits + 7) // 8, offset % 8, bits)
    return Place(offset // 8, types.size(number))


def names(types: Types, structure: str, path: str) -> tuple[str, ...]:
    """Return the names of the members of a member; none if the kernel lacks it."""
    number = types.structure(structure)
    for name in path.split("."):
        member = None if number is None else types.members(number).get(name)
        if member is None:
            return ()
        number = member.type
    assert number is not None
    return tuple(types.members(number))
