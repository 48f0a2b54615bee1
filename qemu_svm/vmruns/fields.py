"""All fields of a VMCB page by name, and the differences between two pages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from construct import Bytes, Struct

from qemu_svm.nested import layout
from qemu_svm.nested.image import Image


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a VMCB page.

    :param path: ``control.asid`` or ``save.cs.base``.
    :param offset: in the page.
    :param number: a little-endian number, not bytes.
    """

    path: str
    offset: int
    size: int
    number: bool

    def read(self, page: bytes) -> int | bytes:
        """Return the field's value."""
        data = page[self.offset : self.offset + self.size]
        return int.from_bytes(data, "little") if self.number else data


@dataclass(frozen=True, slots=True)
class Change:
    """One field that differs between two pages."""

    field: Field
    old: int | bytes
    new: int | bytes


@cache
def fields() -> tuple[Field, ...]:
    """Return all fields by offset; gaps are fields named ``reserved_…``."""
    return (
        *_flat(layout.CONTROL, "control", layout.CONTROL_OFFSET),
        *_flat(layout.SAVE, "save", layout.SAVE_OFFSET),
    )


def _flat(image: Image, area: str, start: int) -> Iterator[Field]:
    for member in image.members:
        offset, path = start + member.offset, f"{area}.{member.name}"
        if isinstance(member.layout, Struct):
            for part in member.layout.subcons:
                size = part.sizeof()
                # Of these structures only the gap at the end is not a number.
                yield Field(f"{path}.{part.name}", offset, size, number=part.name != "reserved")
                offset += size
        else:
            # The six intercept words are one number: bit 32 * word + bit.
            number = not isinstance(member.layout, Bytes)
            yield Field(path, offset, member.size, number)


def changes(old: bytes, new: bytes) -> Iterator[Change]:
    """Compare two pages field by field."""
    if old == new:
        return
    for field in fields():
        one, two = (page[field.offset : field.offset + field.size] for page in (old, new))
        if one != two:
            yield Change(field, field.read(old), field.read(new))
