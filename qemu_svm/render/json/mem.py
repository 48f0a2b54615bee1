"""Memory as JSON: what was read, translated, mapped, found, written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qemu_svm.memory.core import Plan
from qemu_svm.memory.layout import Layout, Range
from qemu_svm.memory.results import Piece, Run, Step, Walk
from qemu_svm.stream import RamBlock

Json = dict[str, Any]
_VERSION = 1
_L2 = ("l2p", "l2v")


def read_document(query: str, world: str, pieces: Sequence[Piece]) -> Json:
    """What ``mem read --json`` prints: runs of one status."""
    runs: list[Json] = []
    for piece in pieces:
        last = runs[-1] if runs else None
        if last is not None and last["status"] == piece.status.value:
            last["size"] += piece.size
            last["hex"] += piece.data.hex()
        else:
            runs.append({
                "address": f"{piece.address:#x}", "size": piece.size,
                "status": piece.status.value, "hex": piece.data.hex(),
            })  # fmt: skip
    return {"schema_version": _VERSION, "query": query, "world": world, "runs": runs}


def walk_document(query: str, world: str, address: int, walk: Walk) -> Json:
    """What ``mem translate --json`` prints."""
    result: Json = {"status": walk.status.value, "address": _number(walk.address)}
    if world in _L2:
        l2 = address if world == "l2p" else walk.l2_physical
        result["l2_physical"] = _number(l2)
    result |= {"size": walk.size, "flags": list(walk.flags)}
    return {
        "schema_version": _VERSION,
        "query": query,
        "world": world,
        "result": result,
        "walk": [_step(step) for step in walk.steps],
    }


def _step(step: Step) -> Json:
    return {
        "stage": step.stage, "level": step.level, "table": f"{step.table:#x}",
        "index": step.index, "entry": _number(step.entry), "flags": list(step.flags),
    }  # fmt: skip


def _number(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


def layout_document(world: str, layout: Layout, blocks: Sequence[RamBlock]) -> Json:
    """What ``mem map --json`` prints of physical memory."""
    return {
        "schema_version": _VERSION,
        "world": world,
        "ranges": [_range(one, blocks) for one in layout.ranges],
        "smram": [_range(one, blocks) for one in layout.smram],
        "unplaced": [
            {"block": blocks[index].name, "reason": reason} for index, reason in layout.unplaced
        ],
        "assumptions": list(layout.assumptions),
    }


def _range(one: Range, blocks: Sequence[RamBlock]) -> Json:
    return {
        "start": f"{one.start:#x}", "end": f"{one.end:#x}", "size": one.size,
        "use": one.use.value, "block": blocks[one.block].name, "offset": one.offset,
        "reason": one.reason,
    }  # fmt: skip


def map_document(world: str, runs: Sequence[Run], *, complete: bool) -> Json:
    """What ``mem map --json`` prints of a space behind page tables."""
    return {
        "schema_version": _VERSION,
        "world": world,
        "complete": complete,
        "ranges": [
            {
                "start": f"{run.start:#x}", "end": f"{run.end:#x}", "size": run.size,
                "target": _number(run.target), "flags": list(run.flags),
            }
            for run in runs
        ],
    }  # fmt: skip


def search_document(world: str, pattern: bytes, hits: Sequence[Json], *, complete: bool) -> Json:
    """What ``mem search --json`` prints."""
    return {
        "schema_version": _VERSION,
        "world": world,
        "pattern": pattern.hex(),
        "complete": complete,
        "hits": list(hits),
    }


def core_document(path: str, plan: Plan, commands: Sequence[str]) -> Json:
    """What ``mem core --json`` prints."""
    note = plan.vmcoreinfo
    return {
        "schema_version": _VERSION,
        "file": path,
        "size": plan.size,
        "of": plan.level,
        "for": plan.form,
        "vcpus": [one.vcpu for one in plan.registers],
        "loads": len(plan.loads if plan.form == "crash" else plan.virtual),
        "pages": dict(plan.counts),
        "vmcoreinfo": None if note is None else {
            "address": f"{note.address:#x}", "release": note.release,
            "kaslr_offset": _number(note.kaslr_offset), "phys_base": note.phys_base,
        },
        "missing": list(plan.missing),
        "commands": list(commands),
    }  # fmt: skip


def disassembly_document(query: str, world: str, instructions: Sequence[Json]) -> Json:
    """What ``mem disasm --json`` prints."""
    return {
        "schema_version": _VERSION,
        "query": query,
        "world": world,
        "instructions": list(instructions),
    }
