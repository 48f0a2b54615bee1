"""The formats of ``x`` in gdb and QEMU's monitor: ``/16xg`` is 16 hexadecimal words of 8 bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from qemu_svm.errors import PathError
from qemu_svm.memory.results import Piece, Status

LETTERS = "xduotcsia"
_SIZES = {"b": 1, "h": 2, "w": 4, "g": 8}
_FORMAT = re.compile(r"/?(\d*)([a-z]{0,2})")
_MOST = 1 << 20


@dataclass(frozen=True, slots=True)
class Format:
    """What to show.

    :param count: how many values, strings or instructions.
    :param letter: x d u o t (binary) c (characters) s (strings) i (instructions) a (addresses).
    :param size: bytes of a value.
    """

    count: int
    letter: str
    size: int


def parse(text: str) -> Format:
    """Read a format.

    :raises PathError: it is not one.
    """
    found = _FORMAT.fullmatch(text)
    count, letter, size = 1, "x", 0
    if found is not None:
        count = int(found[1] or 1)
        for one in found[2]:
            if one in _SIZES and not size:
                size = _SIZES[one]
            elif one in LETTERS:
                letter = one
            else:
                found = None
                break
    if found is None or text in ("", "/") or not 0 < count <= _MOST:
        raise PathError(f"unknown format '{text}'", near=("/16xg", "/8xw", "/s", "/10i"))
    default = {"c": 1, "s": 1, "i": 1, "a": 8}.get(letter, 4)
    return Format(count, letter, size or default)


def values(pieces: Iterable[Piece], size: int) -> Iterator[tuple[int, int | None, Status]]:
    """Little-endian values of ``size`` bytes: address, value, and why there is none."""
    start, data, status = -1, b"", Status.MAPPED
    for piece in pieces:
        place, end = piece.address, piece.address + piece.size
        while place < end:
            if start < 0:
                start, data, status = place, b"", Status.MAPPED
            many = min(size - (place - start), end - place)
            if piece.status is Status.MAPPED:
                data += piece.data[place - piece.address :][:many]
            elif status is Status.MAPPED:
                status = piece.status
            place += many
            if place - start == size:
                known = status is Status.MAPPED
                yield start, int.from_bytes(data, "little") if known else None, status
                start = -1


def shown(value: int | None, form: Format) -> str:
    """One value as text; ``??`` where it is unknown."""
    if value is None:
        return "??"
    return _SHOWN[form.letter](value, form.size)


def _signed(value: int, size: int) -> str:
    return str(value - (1 << 8 * size) if value >> 8 * size - 1 else value)


def _character(value: int, _size: int) -> str:
    byte = value & 0xFF
    return f"{byte} '{chr(byte)}'" if 32 <= byte < 127 else f"{byte} '\\{byte:03o}'"


_SHOWN: dict[str, Callable[[int, int], str]] = {
    "x": lambda value, size: f"{value:#0{2 + 2 * size}x}",
    "d": _signed,
    "u": lambda value, _: str(value),
    "o": lambda value, _: f"0{value:o}" if value else "0",
    "t": lambda value, size: f"{value:0{8 * size}b}",
    "c": _character,
    "a": lambda value, _: f"{value:#x}",
}
