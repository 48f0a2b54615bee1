"""Streams of which QEMU said itself where memory is, and memory made for a test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qemu_svm.machine import read_machine
from qemu_svm.memory.memory import GuestMemory
from qemu_svm.source import open_source
from qemu_svm.source.plain import BytesSource
from qemu_svm.stream import read_stream
from qemu_svm.stream.ram.read import read_ram
from tests.conftest import STREAMS
from tests.support.builders import PAGE, page, stream

FOLDER = STREAMS / "memory"
TRUTHS: dict[str, dict[str, Any]] = {
    path.name.removesuffix(".truth.json"): json.loads(path.read_text())
    for path in sorted(FOLDER.glob("*.truth.json"))
}
"""What QEMU's monitor and ``dump-guest-memory`` said of the same stopped machine."""

BARE = {name: truth for name, truth in TRUTHS.items() if "gva2gpa" in truth}
"""Guests with page tables of their own."""


@contextmanager
def opened(path: Path) -> Iterator[GuestMemory]:
    with open_source(str(path)) as source:
        machine = read_machine(read_stream(source))
        with read_ram(machine.stream) as ram:
            yield GuestMemory(machine, ram)


@contextmanager
def truth_of(name: str) -> Iterator[tuple[GuestMemory, dict[str, Any]]]:
    with opened(FOLDER / f"{name}.mig.zst") as memory:
        yield memory, TRUTHS[name]


def loads(truth: Mapping[str, Any]) -> list[tuple[int, int, str]]:
    """PT_LOADs of QEMU's dump: address, size, SHA-256."""
    return sorted(
        (int(one["paddr"], 0), int(one["size"], 0), one["sha256"])
        for one in truth["dump-guest-memory"]
    )


def made(pages: Mapping[int, bytes], size: int = 0x200000) -> GuestMemory:
    """A guest whose RAM holds these pages at these addresses; the others were never sent."""
    records = [
        page(address, data, None if number else "pc.ram")
        for number, (address, data) in enumerate(sorted(pages.items()))
    ]
    data = stream(ram_parts=[b"".join(records)], blocks={"pc.ram": size})
    machine = read_machine(read_stream(BytesSource(data)))
    return GuestMemory(machine, read_ram(machine.stream))


def tables(entries: Mapping[int, int], width: int = 8) -> dict[int, bytes]:
    """Pages out of entries by their physical addresses."""
    pages: dict[int, bytearray] = {}
    for address, entry in entries.items():
        at = address & ~(PAGE - 1)
        one = pages.setdefault(at, bytearray(PAGE))
        one[address - at : address - at + width] = entry.to_bytes(width, "little")
    return {address: bytes(one) for address, one in pages.items()}
