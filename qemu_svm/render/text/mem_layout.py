"""The report of ``mem map`` of L1-physical memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qemu_svm.memory.layout import Range
from qemu_svm.memory.reports import PhysicalMap
from qemu_svm.render.escape import printable
from qemu_svm.stream import RamBlock


def render(result: PhysicalMap) -> Iterator[str]:
    """Return RAM at its addresses, each range with the reason why it is there."""
    layout, blocks = result.layout, result.blocks
    yield result.place.heading
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
