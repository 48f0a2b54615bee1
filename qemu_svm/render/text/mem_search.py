"""The report of ``mem search``."""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.memory.reports import SearchReport


def render(result: SearchReport) -> Iterator[str]:
    """Return a line for each hit, with its addresses in the other worlds."""
    world = result.place.world
    yield result.place.heading
    for one in result.hits:
        words = [f"  {world}:{one.hit.address:#x}"]
        if world != "l1p":
            words.append(f"l1p:{one.hit.l1_physical:#x}")
        if world != "l2p":
            words += [f"l2p:{address:#x}" for _root, address in one.l2_physical]
        yield "  ".join(words)
