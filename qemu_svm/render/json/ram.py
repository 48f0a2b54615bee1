"""The JSON document of ``ram``, version 1; ``docs/ram.md`` describes it.

Addresses and offsets in blocks are strings ``"0x…"``; counts and sizes are
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qemu_svm.render.numbers import hex_text
from qemu_svm.stream import Stream
from qemu_svm.stream.ram.coverage import BlockCoverage
from qemu_svm.stream.ram.read import Ram, all_problems, is_complete

SCHEMA_VERSION = 1


def ram_document(
    stream: Stream,
    ram: Ram,
    covered: Sequence[BlockCoverage],
    chosen: Sequence[int],
    files: Mapping[int, str],
) -> dict[str, Any]:
    """The document of ``ram``.

    :param chosen: indices of the blocks to show.
    :param files: the file that each extracted block was written to.
    """
    counts = ram.counts()
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": stream.source.path, "compression": stream.source.compression},
        "page_size": ram.page_size,
        "complete": is_complete(stream, ram),
        "pages": {
            "normal": counts.normal,
            "zero": counts.zero,
            "xbzrle": counts.xbzrle,
            "compressed": counts.compressed,
            "again": sum(block.again for block in covered),
        },
        "runs": len(ram.runs),
        "blocks": [_block(ram, covered, number, files) for number in chosen],
        "channels": [
            {
                "number": channel.number,
                "methods": list(channel.methods),
                "packets": len(channel.packets),
                "epochs": channel.epochs,
            }
            for channel in ram.channels
        ],
        "connections": [{"kind": extra.kind, "pages": extra.pages} for extra in ram.extras],
        "problems": [
            {"rule": problem.rule, "message": problem.detail(), "offset": problem.offset}
            for problem in all_problems(stream, ram)
        ],
    }


def _block(
    ram: Ram, covered: Sequence[BlockCoverage], number: int, files: Mapping[int, str]
) -> dict[str, Any]:
    entry, pages = ram.entries[number], covered[number]
    return {
        "name": entry.block.name,
        "size": entry.block.used_length,
        "page_size": entry.page_size,
        "address": None if entry.address is None else hex_text(entry.address),
        "mapped": entry.mapped is not None,
        "pages": {
            "all": pages.pages,
            "data": pages.data,
            "zero": pages.zero,
            "never": pages.never,
            "sent": pages.sent,
            "again": pages.again,
            "repeated": pages.repeated,
            "most": pages.most,
        },
        "file": files.get(number),
    }
