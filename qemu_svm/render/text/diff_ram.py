"""The RAM part of the report of ``diff``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.findings.ram_diff import BlockDiff, RamDiff, RamRange
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, KEY, columns

_RANGES = 20
"""Ranges of a block that are listed unless all are requested."""


def render(found: RamDiff, *, all_differences: bool) -> Iterable[Text]:
    """Return a row for each block, then the ranges of pages that differ.

    :param all_differences: all ranges, and those of masked blocks.
    """
    yield Text("RAM pages", HEADING)
    rows: list[list[str | Text]] = [
        [
            Text(printable(block.name), KEY),
            str(block.pages),
            str(block.same),
            str(block.different),
            str(block.only_a),
            str(block.only_b),
            _notes(block),
        ]
        for block in found.blocks
    ]
    yield from columns(rows, ("block", "pages", "same", "differ", "only A", "only B", ""))
    for side, error in found.problems:
        yield Text(f"  not read: {side.upper()}: {printable(str(error))}")
    for block in found.blocks:
        if block.ranges and (all_differences or block.mask is None):
            yield Text()
            yield from _ranges(block, len(block.ranges) if all_differences else _RANGES)


def _notes(block: BlockDiff) -> Text:
    notes = []
    if block.size_a is None or block.size_b is None:
        notes.append(f"only in {'B' if block.size_a is None else 'A'}")
    elif block.size_a != block.size_b:
        notes.append("sizes differ")
    if block.never:
        notes.append(f"{block.never} never sent")
    if block.unreadable:
        notes.append(f"{block.unreadable} unreadable")
    if block.mask is not None:
        notes.append(f"masked: {block.mask.id}")
    return Text(", ".join(notes), FAINT)


def _ranges(block: BlockDiff, most: int) -> Iterable[Text]:
    yield Text(printable(block.name), HEADING)
    rows: list[list[str | Text]] = [
        [Text(_where(block, one), KEY), one.a.value, one.b.value, _size(one)]
        for one in block.ranges[:most]
    ]
    yield from columns(rows, ("offset in the block", "A", "B", ""))
    if len(block.ranges) > most:
        left = sum(one.count for one in block.ranges[most:]) + block.dropped
        more = len(block.ranges) - most
        yield Text(f"  and {more} more ranges, {left} pages (--all shows them)", FAINT)
    elif block.dropped:
        yield Text(f"  and {block.dropped} pages in ranges that were not kept", FAINT)


def _where(block: BlockDiff, one: RamRange) -> str:
    start = one.page * block.page_size
    return f"{start:#x}..{start + one.count * block.page_size - 1:#x}"


def _size(one: RamRange) -> str:
    pages = f"{one.count} page{'' if one.count == 1 else 's'}"
    return f"{pages}, {one.different} bytes" if one.different else pages
