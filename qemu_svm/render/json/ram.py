"""The JSON document of ``ram``, version 1 (``docs/ram.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.results import RamReport
from qemu_svm.render.json.base import SCHEMA_VERSION, optional_hex


def render(result: RamReport) -> dict[str, Any]:
    """Return the document."""
    stream, ram, covered = result.stream, result.ram, result.coverage
    counts = ram.counts()
    return {
        "schema_version": SCHEMA_VERSION,
        "source": {"path": stream.source.path, "compression": stream.source.compression},
        "page_size": ram.page_size,
        "page_size_from": stream.page_size_from,
        "complete": result.complete,
        "pages": {
            "normal": counts.normal,
            "zero": counts.zero,
            "xbzrle": counts.xbzrle,
            "compressed": counts.compressed,
            "again": sum(block.again for block in covered),
        },
        "runs": len(ram.runs),
        "blocks": [_block(result, number) for number in result.chosen],
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
            for problem in result.problems
        ],
    }


def _block(result: RamReport, number: int) -> dict[str, Any]:
    entry, pages = result.ram.entries[number], result.coverage[number]
    return {
        "name": entry.block.name,
        "size": entry.block.used_length,
        "page_size": entry.page_size,
        "address": optional_hex(entry.address),
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
        "file": result.files.get(number),
    }
