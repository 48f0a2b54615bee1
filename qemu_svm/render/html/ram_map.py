"""Pages of RAM as pictures: a map of each block, and the rounds of a migration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qemu_svm.findings.results import RamReport
from qemu_svm.render.html.values import Cell, Offset, block_name
from qemu_svm.render.sizes import size_words
from qemu_svm.stream.ram.final import Tally
from qemu_svm.stream.ram.rounds import Round

COLUMNS, ROWS, CELL = 128, 16, 6
_MOST_BLOCKS = 24
_MOST_ROUNDS = 24

STATES = {
    "never": "never sent",
    "zero": "zero",
    "some": "data in up to half of its pages",
    "most": "data in more",
    "again": "pages sent more than once",
}
"""States of a cell, and what they mean; the last that applies counts."""


@dataclass(frozen=True, slots=True)
class Rect:
    """Cells of one state beside each other."""

    x: int
    y: int
    width: int
    state: str


@dataclass(frozen=True, slots=True)
class Map:
    """The map of a block.

    :param cell: bytes that a cell stands for, in words.
    """

    name: Cell
    cell: str
    columns: int
    rows: int
    rects: tuple[Rect, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A row of the table of blocks."""

    name: Cell
    size: str
    data: int
    zero: int
    never: int
    again: int
    repeated: int
    most: int


@dataclass(frozen=True, slots=True)
class RoundBar:
    """A round, or several in a row, with widths in percent of the longest.

    :param label: its number, or numbers.
    """

    label: str
    offset: Offset | None
    data: int
    deltas: int
    zero: int
    widths: tuple[tuple[str, float], ...]


def blocks(report: RamReport) -> list[Block]:
    """Return the table of blocks."""
    return [
        Block(
            block_name(report.ram.blocks[at].name), size_words(report.ram.blocks[at].used_length),
            found.data, found.zero, found.never, found.again, found.repeated, found.most,
        )
        for at in report.chosen
        for found in (report.coverage[at],)
    ]  # fmt: skip


def maps(report: RamReport) -> list[Map]:
    """Return maps of the largest blocks, in the order of the list."""
    spans = {at: _pages(report, at) for at in report.chosen}
    there = [at for at, (first, last) in spans.items() if first < last]
    largest = sorted(there, key=lambda at: spans[at][0] - spans[at][1])[:_MOST_BLOCKS]
    return [_map(report, at) for at in sorted(largest)]


def _map(report: RamReport, number: int) -> Map:
    first, last = _pages(report, number)
    final = report.coverage[number].final
    cell = 1 << max(0, (-(-(last - first) // (COLUMNS * ROWS)) - 1).bit_length())
    states = [
        _state(final.tally(at, min(at + cell, last)), min(at + cell, last) - at)
        for at in range(first, last, cell)
    ]
    return Map(
        block_name(report.ram.blocks[number].name),
        size_words(cell * report.ram.page_size),
        min(COLUMNS, len(states)),
        -(-len(states) // COLUMNS),
        tuple(_rects(states)),
    )


def _pages(report: RamReport, number: int) -> tuple[int, int]:
    # The first page that was asked for, and the one after the last.
    pages, size = report.coverage[number].pages, report.ram.page_size
    if report.span is None:
        return 0, pages
    start, end = report.span
    return min(start // size, pages), min(-(-end // size), pages)


def _state(found: Tally, pages: int) -> str:
    if found.repeated:
        return "again"
    if found.data:
        return "most" if 2 * found.data > pages else "some"
    return "zero" if found.zero else "never"


def _rects(states: Sequence[str]) -> Iterator[Rect]:
    for row in range(0, len(states), COLUMNS):
        line = states[row : row + COLUMNS]
        start = 0
        for at in range(1, len(line) + 1):
            if at == len(line) or line[at] != line[start]:
                yield Rect(start * CELL, row // COLUMNS * CELL, (at - start) * CELL, line[start])
                start = at


def round_bars(found: Sequence[Round]) -> list[RoundBar]:
    """Return bars of the rounds; of many, those in the middle become one."""
    groups: list[tuple[str, tuple[Round, ...]]] = [
        (str(at), (one,)) for at, one in enumerate(found, 1)
    ]
    if len(groups) > _MOST_ROUNDS:
        half = _MOST_ROUNDS // 2
        middle = found[half : len(found) - half]
        groups[half : len(found) - half] = [(f"{half + 1}-{len(found) - half}", tuple(middle))]
    longest = max((sum(one.sent for one in members) for _, members in groups), default=1) or 1
    bars = []
    for label, members in groups:
        counts = (
            sum(one.data for one in members),
            sum(one.deltas for one in members),
            sum(one.zero for one in members),
        )
        widths = tuple(
            (kind, round(100 * count / longest, 2))
            for kind, count in zip(("data", "deltas", "zero"), counts, strict=True)
            if count
        )
        at = members[0].offset
        bars.append(RoundBar(label, None if at is None else Offset(at), *counts, widths))
    return bars
