"""The JSON document of ``diff``, version 1 (``docs/diff.md``)."""

from __future__ import annotations

from typing import Any

from qemu_svm.findings.diff import Difference
from qemu_svm.findings.puts import PutComparison
from qemu_svm.findings.ram_diff import BlockDiff
from qemu_svm.findings.results import DiffReport
from qemu_svm.findings.weights import weight_of
from qemu_svm.machine import Machine
from qemu_svm.render.json.base import SCHEMA_VERSION, leaf, problem
from qemu_svm.render.words import bit_names, meaning
from qemu_svm.stream import Value

_NUMBERS = frozenset({"ram block", "section"})


def render(result: DiffReport) -> dict[str, Any]:
    """Return the document; masked differences are included, and marked."""
    found, pages = result.comparison, result.pages
    return {
        "schema_version": SCHEMA_VERSION,
        "a": _stream(result.a),
        "b": _stream(result.b),
        "same": result.same,
        "differences": [_difference(one) for one in found.differences],
        "masks": [
            {
                "id": name,
                "reason": members[0].mask.reason if members[0].mask else "",
                "source": members[0].mask.source if members[0].mask else "",
                "count": len(members),
            }
            for name, members in found.masked().items()
        ],
        "renamed": [{"path": path, "name": name} for path, name in found.renamed],
        "problems": [
            {"stream": side, **problem(error)}
            for side, error in (*found.problems, *(pages.problems if pages else ()))
        ],
        "puts": [_put(one) for one in result.puts],
        "ram": None if pages is None else [_block(block) for block in pages.blocks],
    }


def _put(one: PutComparison) -> dict[str, Any]:
    return {
        "vcpu": one.index,
        "a": one.a,
        "b": one.b,
        "compared": one.compared,
        "order": one.order,
        "differences": [
            {
                "ioctl": f"KVM_SET_{difference.ioctl}",
                "name": difference.name or None,
                "only": difference.only or None,
                "record_a": difference.record_a,
                "record_b": difference.record_b,
                "a": _put_value(difference.a),
                "b": _put_value(difference.b),
            }
            for difference in one.differences
        ],
    }


def _put_value(value: int | str | None) -> str | None:
    return hex(value) if isinstance(value, int) else value


def _block(block: BlockDiff) -> dict[str, Any]:
    return {
        "name": block.name,
        "size_a": block.size_a,
        "size_b": block.size_b,
        "pages": {
            "all": block.pages,
            "same": block.same,
            "never": block.never,
            "different": block.different,
            "only_a": block.only_a,
            "only_b": block.only_b,
            "unreadable": block.unreadable,
        },
        "ranges": [
            {
                "start": one.page * block.page_size,
                "size": one.count * block.page_size,
                "a": one.a.value,
                "b": one.b.value,
                "different_bytes": one.different,
                "offset_a": one.place_a,
                "offset_b": one.place_b,
            }
            for one in block.ranges
        ],
        "pages_in_no_range": block.dropped,
        "mask": None if block.mask is None else block.mask.id,
    }


def _stream(machine: Machine) -> dict[str, Any]:
    return {
        "path": machine.stream.source.path,
        "machine": machine.name,
        "complete": machine.stream.complete,
    }


def _difference(one: Difference) -> dict[str, Any]:
    return {
        "group": one.group,
        "path": one.path,
        "change": one.change.value,
        "weight": weight_of(one).value,
        "a": _side(one.path, one.a),
        "b": _side(one.path, one.b),
        "mask": None if one.mask is None else one.mask.id,
    }


def _side(path: str, value: Value | None) -> dict[str, Any] | None:
    if value is None:
        return None
    result: dict[str, Any] = {
        "offset": value.offset,
        "size": value.size,
        "type": value.type,
        "value": _value(value),
    }
    names = bit_names(path, value)
    if names is not None:
        result["names"] = names
    if words := meaning(path, value):
        result["meaning"] = words
    return result


def _value(value: Value) -> Any:
    # Sizes and versions of what the comparison itself made are plain numbers.
    return value.value if value.type in _NUMBERS or value.name == "version" else leaf(value)
