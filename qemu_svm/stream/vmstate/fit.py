"""A section's layout from a dump, if only one fits the bytes.

A dump (:mod:`~qemu_svm.stream.vmstate.dump`) does not show which conditional fields are
present or how many elements some arrays have, and its sizes are those in memory.  But
the footer determines the length of the section, and subsections have names.  So every
way in which the fields can fill the section is tried; if there is exactly one, that is
the layout.  It remains a guess: numbers are unsigned, fields whose width is not that of
a number are raw bytes, and an array of unknown length is assumed to have one element.

Source: QEMU ``migration/vmstate.c`` (``vmstate_save_state_v``,
``vmstate_subsection_save``), 5.2 to 11.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from qemu_svm.stream.constants import RecordType
from qemu_svm.stream.vmstate.description import Field, Fields, subsection_header_size
from qemu_svm.stream.vmstate.dump import DumpField, DumpLayout

_NUMBERS = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}
_TIMER_IN_MEMORY, _TIMER = 48, 8  # bytes of a QEMUTimer, and of its value on the wire
_MOST_STEPS = 50_000  # fields tried for one section

_T = TypeVar("_T")
_Ways = dict[int, tuple[_T, ...] | None]
"""Offsets that can be reached, and the fields before them; None if there are several ways."""


def fitted(layouts: Iterable[DumpLayout], version: int, payload: bytes) -> Fields | None:
    """Return the only layout that fills a payload.

    :param layouts: those that the section may have.
    :param version: the section's.
    :returns: None if none fits, or more than one.
    """
    found: list[tuple[Fields, ...] | None] = []
    for layout in layouts:
        if layout.minimum <= version <= layout.version:
            try:
                ways = _Fitter(payload).body(layout, version, 0)
            except _TooManyWaysError:
                return None
            if len(payload) in ways:
                found.append(ways[len(payload)])
    return found[0][0] if len(found) == 1 and found[0] is not None else None


class _TooManyWaysError(Exception):
    pass


class _Fitter:
    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._steps = _MOST_STEPS

    def body(self, layout: DumpLayout, version: int, start: int) -> _Ways[Fields]:
        """Return the possible ends of a layout that starts at ``start``, each with its fields."""
        reached: _Ways[Field] = {start: ()}
        for field in layout.fields:
            if field.since <= version:
                reached = self._on(reached, partial(self._field, field), missing=field.conditional)
        found: _Ways[Fields] = {}
        for place, fields in reached.items():
            after: _Ways[Fields] = {place: ()}
            for subsection in layout.subsections:
                after = self._on(after, partial(self._subsection, subsection))
            for end, subsections in after.items():
                if fields is None or subsections is None or end in found:
                    found[end] = None
                else:
                    found[end] = (Fields(layout.name, version, fields, subsections),)
        return found

    def _on(
        self,
        reached: _Ways[_T],
        step: Callable[[int], _Ways[_T]],
        *,
        missing: bool = False,
    ) -> _Ways[_T]:
        # One more element after each place; ``missing``: it may be absent.
        found = dict(reached) if missing else {}
        for place, before in reached.items():
            self._steps -= 1
            if self._steps < 0:
                raise _TooManyWaysError
            for end, made in step(place).items():
                if before is None or made is None or end in found:
                    found[end] = None
                else:
                    found[end] = before + made
        return found

    def _field(self, field: DumpField, place: int) -> _Ways[Field]:
        count = 1 if field.count is None else field.count
        if field.size < 0 or not 0 <= count <= len(self._payload):
            return {}
        if field.layout is not None:
            reached: _Ways[Field] = {place: ()}
            for _ in range(count):
                reached = self._on(reached, partial(self._structure, field.name, field.layout))
            return reached
        sizes = {field.size, _TIMER if field.size == _TIMER_IN_MEMORY else field.size}
        ends = {place + size * count: size for size in sizes}
        return {
            end: (Field(field.name, _NUMBERS.get(size, "buffer"), size, field.count),)
            for end, size in ends.items()
            if end <= len(self._payload)
        }

    def _structure(self, name: str, layout: DumpLayout, place: int) -> _Ways[Field]:
        return {
            end: None if ways is None else (Field(name, "struct", end - place, None, ways),)
            for end, ways in self.body(layout, layout.version, place).items()
        }

    def _subsection(self, layout: DumpLayout, place: int) -> _Ways[Fields]:
        # The wire shows whether it is present.
        name = layout.name.encode()
        head = bytes((RecordType.SUBSECTION, len(name) & 0xFF)) + name
        after = place + subsection_header_size(layout.name)
        if self._payload[place : place + len(head)] != head or after > len(self._payload):
            return {place: ()}
        version = int.from_bytes(self._payload[after - 4 : after], "big")
        return self.body(layout, version, after)
