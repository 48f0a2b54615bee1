"""The report of ``mem map`` of a space with page tables."""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.memory.reports import MappedRanges


def render(result: MappedRanges) -> Iterator[str]:
    """Return ranges with their permissions, and their targets if they have one."""
    yield result.place.heading
    for run in result.runs:
        flags = run.flags
        letters = "".join((
            "u" if "U" in flags else "-", "r", "w" if "W" in flags else "-",
            "-" if "NX" in flags else "x",
        ))  # fmt: skip
        target = "" if run.target is None else f" -> {run.target:#x}"
        yield f"  {run.start:#018x}-{run.end:#018x} {run.size:#14x} {letters}{target}"
