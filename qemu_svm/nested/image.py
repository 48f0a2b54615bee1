"""Structures with fixed offsets, declared once.

:func:`image` turns ``(offset, name, type)`` rows into a construct ``Struct``
and fills the gaps with reserved bytes, so that every byte has a name, the
offsets in the declaration are those of the manual, and what is parsed can be
built again byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from construct import Array, Bytes, BytesInteger, Construct, FormatField, Struct

Row: TypeAlias = "tuple[int, str, Construct[Any, Any]]"


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an image: ``offset`` and ``size`` in bytes, inside the image."""

    name: str
    offset: int
    size: int
    layout: Construct[Any, Any]

    @property
    def reserved(self) -> bool:
        """Whether it is a gap that the declaration has no name for."""
        return self.name.startswith("reserved_")


@dataclass(frozen=True, slots=True)
class Image:
    """A declared structure: ``layout`` parses and builds all of it."""

    size: int
    members: tuple[Member, ...]
    layout: Construct[Any, Any]

    def member(self, name: str) -> Member:
        """Return a member by name.

        :raises KeyError: there is none.
        """
        for member in self.members:
            if member.name == name:
                return member
        raise KeyError(name)

    def at(self, offset: int) -> Member:
        """Return the member that holds the byte at ``offset``.

        :raises KeyError: outside the image.
        """
        for member in self.members:
            if member.offset <= offset < member.offset + member.size:
                return member
        raise KeyError(offset)


def image(size: int, *rows: Row) -> Image:
    """Declare a structure of ``size`` bytes.

    :raises ValueError: rows overlap, are out of order or end beyond ``size``.
    """
    members = tuple(_members(size, rows))
    layout = Struct(*(member.name / member.layout for member in members))
    return Image(size, members, layout)


def _members(size: int, rows: tuple[Row, ...]) -> Iterator[Member]:
    at = 0
    for offset, name, layout in rows:
        if offset < at:
            raise ValueError(f"{name} at {offset:#x} overlaps the member that ends at {at:#x}")
        if offset > at:
            yield Member(f"reserved_{at:03x}", at, offset - at, Bytes(offset - at))
        member = Member(name, offset, layout.sizeof(), layout)
        yield member
        at = offset + member.size
    if at > size:
        raise ValueError(f"the last member ends at {at:#x}, beyond {size:#x}")
    if at < size:
        yield Member(f"reserved_{at:03x}", at, size - at, Bytes(size - at))


def type_name(layout: Construct[Any, Any]) -> str:
    """Return a member's type as in C: ``u32``, ``u8[16]``, ``u32[6]``."""
    if isinstance(layout, Array):
        return f"{type_name(layout.subcon)}[{layout.count}]"
    if isinstance(layout, FormatField | BytesInteger):
        return f"u{8 * layout.sizeof()}"
    if isinstance(layout, Struct):
        return "struct"
    return f"u8[{layout.sizeof()}]"
