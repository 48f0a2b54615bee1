"""The report of ``mem disasm``."""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.memory.reports import Disassembly
from qemu_svm.memory.results import WORDS, Status


def render(result: Disassembly) -> Iterator[str]:
    """Return a line for each instruction; the vCPU's next one is marked."""
    yield result.place.heading
    for one in result.instructions:
        mark = "=>" if one.address == result.current else "  "
        words = f"{one.data.hex(' '):30}  {one.text}"
        if one.status is not Status.MAPPED:
            words = f"??  {one.status} ({WORDS[one.status]})"
        yield f"{mark} {one.address:#018x}: {words}"
