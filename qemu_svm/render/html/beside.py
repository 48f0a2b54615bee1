"""Two streams side by side: their differences as rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from qemu_svm.findings.diff import Change, Difference
from qemu_svm.findings.results import DiffReport
from qemu_svm.findings.weights import Weight, ranked
from qemu_svm.render.html.fields import PLAIN, number
from qemu_svm.render.html.values import Cell, Name, Offset, Raw, Uuid
from qemu_svm.render.words import bit_names, meaning
from qemu_svm.stream import Value

WEIGHTS = {
    Weight.DESTINATION: "the destination must be made for it",
    Weight.NESTED: "nested state: checked by KVM, or L1 or L2 runs differently",
    Weight.MODE: "how the vCPU works",
    Weight.DEVICE: "device state",
    Weight.PROGRESS: "how far the guest was",
}
"""What differences of a weight mean."""

_MOST = 400
_BYTES = 16
_NUMBERS = 8
_OPEN = frozenset({"machine", "machine type", "capabilities"})
"""Strings that tell nothing about who uses the machine."""


@dataclass(frozen=True, slots=True)
class Side:
    """A value of one stream."""

    cell: Cell
    words: str
    offset: Offset


@dataclass(frozen=True, slots=True)
class Pair:
    """A difference."""

    path: str
    a: Side | None
    b: Side | None
    change: str


@dataclass(frozen=True, slots=True)
class Group:
    """Differences of one weight.

    :param more: how many are not listed.
    """

    words: str
    pairs: tuple[Pair, ...]
    more: int


@dataclass(frozen=True, slots=True)
class MaskedBy:
    """Differences that do not count."""

    mask: str
    reason: str
    count: int


def groups(report: DiffReport) -> list[Group]:
    """Return the differences that count, by weight, what matters most first."""
    by_weight: dict[Weight, list[Difference]] = {}
    for weight, one in ranked(report.comparison):
        by_weight.setdefault(weight, []).append(one)
    return [
        Group(
            WEIGHTS[weight],
            tuple(_pair(one) for one in islice(members, _MOST)),
            max(0, len(members) - _MOST),
        )
        for weight, members in by_weight.items()
    ]


def masked(report: DiffReport) -> Iterable[MaskedBy]:
    """Return what was masked, by mask."""
    for name, members in report.comparison.masked().items():
        mask = members[0].mask
        yield MaskedBy(name, "" if mask is None else mask.reason, len(members))


def _pair(one: Difference) -> Pair:
    change = "different width" if one.change is Change.SIZE else ""
    if one.a is not None and one.b is not None:
        ours, theirs = bit_names(one.path, one.a), bit_names(one.path, one.b)
        if ours is not None and theirs is not None:
            gone = [f"-{name}" for name in ours if name not in theirs]
            change = " ".join([*gone, *(f"+{name}" for name in theirs if name not in ours)])
    return Pair(one.path, _side(one, one.a), _side(one, one.b), change)


def _side(one: Difference, value: Value | None) -> Side | None:
    if value is None:
        return None
    return Side(_cell(one, value), meaning(one.path, value), Offset(value.offset))


def _cell(one: Difference, value: Value) -> Cell:
    found = value.value
    cell: Cell
    if found is None:
        cell = f"{value.type}, {value.size} bytes"
    elif isinstance(found, (bytes, tuple)):
        cell = _several(value, found)
    elif value.name == "uuid":
        cell = Uuid(str(found))
    elif isinstance(found, str):
        cell = found if value.name in _OPEN else Name(found, "text")
    elif isinstance(found, bool) or value.type == "ram block" or value.name == "version":
        cell = str(found)
    else:
        cell = number(one.path.split("[")[0], found)
    return cell


def _several(value: Value, found: bytes | tuple[int, ...]) -> Cell:
    if isinstance(found, tuple) and value.name in PLAIN:
        return " ".join(f"{item:#x}" for item in found)
    if isinstance(found, tuple):
        more = f" … ({len(found)} values)" if len(found) > _NUMBERS else ""
        return Raw(" ".join(f"{item:#x}" for item in found[:_NUMBERS]) + more, value.size)
    if value.name == "uuid":
        return Uuid(found.hex())
    more = f" … ({len(found)} bytes)" if len(found) > _BYTES else ""
    return Raw(found[:_BYTES].hex(" ") + more, len(found))
