"""The report of ``diff`` for looks into kernel memory."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from rich.text import Text

from qemu_svm.inside.apart import Apart, InsideDiff
from qemu_svm.inside.looking import InsideLook
from qemu_svm.machine import Machine
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, KEY, columns, stream_heading
from qemu_svm.render.text.observed import observed


def render(result: InsideDiff, *, all_differences: bool) -> Iterable[Text]:
    """Return the differences by vCPU.

    :param all_differences: also those that are masked.
    """
    for letter, side in zip("AB", result.sides, strict=True):
        yield _heading(letter, side)
    if result.saved:
        yield Text("what would be saved now, beside what the stream has", FAINT)
    if result.moving:
        names = ", ".join(result.moving)
        yield Text(f"{names} ran while it was read: registers are those of its last exit", FAINT)
    count = len(result.counting)
    masked = len(result.differences) - count
    words = f"{count or 'no'} difference{'' if count == 1 else 's'}"
    yield Text(f"{words}{f', {masked} more masked' if masked else ''}")
    shown = result.differences if all_differences else result.counting
    for vcpu, members in groupby(shown, key=lambda one: one.vcpu):
        yield Text()
        yield Text(printable(vcpu), HEADING)
        rows = [_row(one) for one in members]
        yield from columns(rows, ("member", "A", "B"))


def _heading(letter: str, side: InsideLook | Machine) -> Text:
    if isinstance(side, Machine):
        return stream_heading(side, f"{letter}: ")
    name = f" ({printable(side.name)})" if side.name else ""
    path = f"{printable(side.path)}: " if side.path else ""
    process = f"process {side.pid}{name}, Linux {printable(side.kernel)}"
    return Text(f"{letter}: {path}{process}", HEADING)


def _row(one: Apart) -> list[str | Text]:
    mask = [Text(f"masked: {one.mask}", FAINT)] if one.mask else []
    return [Text(printable(one.name), KEY), _value(one.name, one.a), _value(one.name, one.b), *mask]


def _value(name: str, value: Any) -> str:
    return "missing" if value is None else observed(name, value)
