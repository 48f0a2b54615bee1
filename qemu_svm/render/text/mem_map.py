"""What an address space has, as text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from qemu_svm.memory.layout import Layout, Range
from qemu_svm.memory.results import Run
from qemu_svm.render.escape import printable
from qemu_svm.stream import RamBlock


def layout_lines(layout: Layout, blocks: Sequence[RamBlock]) -> Iterator[str]:
    """RAM at its addresses, each range with its reason."""
    for one in layout.ranges:
        yield _range(one, blocks)
    for one in layout.smram:
        yield f"{_range(one, blocks)} (in SMM only)"
    for index, reason in layout.unplaced:
        yield f"  without an address: {printable(blocks[index].name)} ({reason})"
    for words in layout.assumptions:
        yield f"  assumed: {printable(words)}"


def _range(one: Range, blocks: Sequence[RamBlock]) -> str:
    name = printable(blocks[one.block].name)
    offset = f"+{one.offset:#x}" if one.offset else ""
    return (
        f"  {one.start:#018x}-{one.end:#018x} {one.size:#14x}  {one.use.value:10} "
        f"{name}{offset}  [{printable(one.reason)}]"
    )


def lines(runs: Iterable[Run]) -> Iterator[str]:
    """Ranges with their permissions, and targets where they have them."""
    for run in runs:
        flags = run.flags
        letters = "".join((
            "u" if "U" in flags else "-", "r", "w" if "W" in flags else "-",
            "-" if "NX" in flags else "x",
        ))  # fmt: skip
        target = "" if run.target is None else f" -> {run.target:#x}"
        yield f"  {run.start:#018x}-{run.end:#018x} {run.size:#14x} {letters}{target}"
