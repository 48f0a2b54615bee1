"""Layouts of a few sections, for streams without a description.

A cut stream loses its description, which is at the end; some machine types never
write one.  The sections of vCPUs have had the same fields since QEMU 5.2
(subsections were only added), so they can be decoded all the same.  A layout of
this module is used only if it fills the section to the last byte, and what is
decoded with it is marked as a guess.

Layouts are text: rows ``name:type`` or ``name:type*count``, where types in capitals
are structures.  In subsections, a word without a colon starts the next one.

Source: QEMU ``hw/core/cpu-common.c``, ``system/cpu-timers.c``,
``migration/global_state.c``, 5.2 to 10.0; for ``cpu`` see
:mod:`~qemu_svm.stream.vmstate.builtin_x86`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from qemu_svm.stream.vmstate import builtin_x86 as x86
from qemu_svm.stream.vmstate.description import UNKNOWN, Device, Field, Fields, payload_size
from qemu_svm.stream.vmstate.types import SCALARS

_SMALL: Mapping[str, tuple[str, str]] = {  # fields, subsections
    "timer": ("cpu_ticks_offset:int64 unused:uint64 cpu_clock_offset:int64", ""),
    "cpu_common": (
        "halted:uint32 interrupt_request:uint32",
        """
        cpu_common/exception_index exception_index:int32
        cpu_common/crash_occurred crash_occurred:bool
        """,
    ),
    "kvmclock": ("clock:uint64", "kvmclock/clock_is_reliable clock_is_reliable:bool"),
    "globalstate": ("size:uint32 runstate:buffer*100", ""),
}


def candidates(name: str, instance_id: int, version: int) -> Iterator[Device]:
    """Yield the layouts that a section of that name may have, the likeliest first."""
    if name == "cpu" and version in (11, 12):
        for wide in (True, False):
            layout = _cpu(version, wide=wide)
            yield Device(name, instance_id, layout, payload_size(layout))
    elif name in _SMALL:
        rows, subsections = _SMALL[name]
        layout = Fields(name, version, _fields(rows), _subsections(subsections))
        yield Device(name, instance_id, layout, payload_size(layout))


@cache
def _cpu(version: int, *, wide: bool) -> Fields:
    words = {
        "long": "uint64" if wide else "uint32",
        "count": "16" if wide else "8",
        "efer": x86.EFER if wide else "",
    }
    rows = x86.CPU + (x86.CPU_12 if version >= 12 else "")
    fields = _fields(rows.format(**words), words["long"])
    return Fields("cpu", version, fields, _subsections(x86.CPU_SUBSECTIONS))


def _fields(rows: str, long: str = "uint64") -> tuple[Field, ...]:
    return tuple(_field(row, long) for row in rows.split())


def _field(row: str, long: str) -> Field:
    name, _, kind = row.rpartition(":")
    kind, _, count = kind.partition("*")
    number = int(count) if count else None
    if kind in x86.STRUCTURES:
        inner, rows = x86.STRUCTURES[kind]
        layout = Fields(
            inner,
            1,
            _fields(rows.format(long=long)),
            _subsections(x86.SUBSECTIONS_IN.get(inner, "")),
        )
        size = UNKNOWN if layout.subsections else payload_size(layout)
        return Field(name, "struct", size, number, (layout,))
    if kind == "buffer":
        return Field(name, kind, number or 0)
    return Field(name, kind, SCALARS[kind].size, number)


def _subsections(text: str) -> tuple[Fields, ...]:
    # A word without a colon starts the next one.
    found: list[tuple[str, list[str]]] = []
    for word in text.split():
        if ":" in word:
            found[-1][1].append(word)
        else:
            found.append((word, []))
    return tuple(
        Fields(
            name,
            1,
            _fields(" ".join(rows)),
            _subsections(x86.SUBSECTIONS_IN.get(name, "")),
            optional=True,
        )
        for name, rows in found
    )
