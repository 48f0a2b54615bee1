"""A section's layout out of a dump, where the bytes leave only one.

A dump (:mod:`~qemu_svm.stream.vmstate.dump`) does not say whether conditional
fields are there, nor how many elements some arrays have, and has sizes in
memory.  Yet the length of a section is known where its footer is, and
subsections carry their names.  So every way in which the fields can fill the
section is tried; if there is exactly one, that is the layout.  It remains a
guess: numbers are unsigned, what is not as wide as a number is raw bytes, and
an array of unknown length is taken for one element.

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
_TIMER_IN_MEMORY, _TIMER = 48, 8  # a QEMUTimer, and what is sent of it
_MOST_STEPS = 50_000  # fields tried, for one section

_T = TypeVar("_T")
_Ways = dict[int, tuple[_T, ...] | None]
"""Places that can be reached, and by what; None if in several ways."""


def fitted(layouts: Iterable[DumpLayout], version: int, payload: bytes) -> Fields | None:
    """Find the only way in which one of the layouts fills a payload.

    :param layouts: those that a section of its name may have.
    :param version: the section's.
    :returns: None if there is no way, or more than one.
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
        """Where a layout that begins at ``start`` may end, and what it then is."""
        reached: _Ways[Field] = {start: ()}
        for field in layout.fields:
            if field.since <= version:
                reached = self._on(reached, partial(self._field, field), missing=field.conditional)
        found: _Ways[Fields] = {}
        for place, fields in reached.items():
            behind: _Ways[Fields] = {place: ()}
            for subsection in layout.subsections:
                behind = self._on(behind, partial(self._subsection, subsection))
            for end, subsections in behind.items():
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
        # One more thing behind each place; ``missing``: it may not be there.
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
        # The wire says whether it is there.
        name = layout.name.encode()
        head = bytes((RecordType.SUBSECTION, len(name) & 0xFF)) + name
        behind = place + subsection_header_size(layout.name)
        if self._payload[place : place + len(head)] != head or behind > len(self._payload):
            return {place: ()}
        version = int.from_bytes(self._payload[behind - 4 : behind], "big")
        return self.body(layout, version, behind)
