"""The report of ``mem translate``."""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.memory.reports import Translation
from qemu_svm.memory.results import WORDS, Status, Walk

_NAMES = {5: "PML5", 4: "PML4", 3: "PDPT", 2: "PD", 1: "PT"}


def render(result: Translation) -> Iterator[str]:
    """Return a line for each step, nested ones indented, and the result."""
    query, walk = result.place.query, result.walk
    yield result.place.heading
    for step in walk.steps:
        indent = "    " if step.stage == "nested" and _two(walk) else "  "
        entry = "??" if step.entry is None else f"{step.entry:#018x}"
        flags = f"  {' '.join(step.flags)}" if step.flags else ""
        name = _NAMES[step.level]
        yield f"{indent}{step.stage:6} {name:4} {step.table:#x}[{step.index}] = {entry}{flags}"
    way = [query]
    if walk.l2_physical is not None and not query.startswith("l2p"):
        way.append(f"l2p:{walk.l2_physical:#x}")
    if walk.address is not None and not query.startswith("l1p"):
        way.append(f"l1p:{walk.address:#x}")
    yield " -> ".join(way)
    words = f"{walk.status}"
    if walk.status is not Status.MAPPED:
        words += f": {WORDS[walk.status]}"
    if walk.size is not None and walk.steps:
        words += f"; page of {walk.size:#x} bytes"
    yield words + (f"; {' '.join(walk.flags)}" if walk.flags else "")


def _two(walk: Walk) -> bool:
    return any(step.stage == "guest" for step in walk.steps)
