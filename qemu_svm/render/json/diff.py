"""The JSON document of ``diff``, version 1 (``docs/diff.md``)."""

from __future__ import annotations

from typing import Any, Literal, NewType, cast

from qemu_svm.findings.diff import Difference
from qemu_svm.findings.puts import PutComparison
from qemu_svm.findings.ram_diff import BlockDiff
from qemu_svm.findings.results import DiffReport
from qemu_svm.findings.weights import weight_of
from qemu_svm.machine import Machine
from qemu_svm.render.json.base import SCHEMA_VERSION, Hex, hex_text, problem, typed
from qemu_svm.render.words import bit_names, meaning
from qemu_svm.stream import Value

_COUNTED = ("ram block", "section")
"""Types that the comparison itself makes; their values are sizes."""
VersionPath = NewType("VersionPath", str)
"""The path of a version, which is a plain number."""


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
                "why": difference.why or None,
                "record_a": difference.record_a,
                "record_b": difference.record_b,
                "a": _put_value(difference.a),
                "b": _put_value(difference.b),
            }
            for difference in one.differences
        ],
    }


def _put_value(value: int | str | None) -> Hex | str | None:
    return hex_text(value) if isinstance(value, int) else value


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
    if any(side is not None and side.name == "version" for side in (one.a, one.b)):
        return {
            "group": one.group,
            "path": VersionPath(one.path),
            "change": one.change.value,
            "weight": weight_of(one).value,
            "a": None if one.a is None else _number(one.path, one.a),
            "b": None if one.b is None else _number(one.path, one.b),
            "mask": None if one.mask is None else one.mask.id,
        }
    return {
        "group": one.group,
        "path": one.path,
        "change": one.change.value,
        "weight": weight_of(one).value,
        "a": None if one.a is None else _side(one.path, one.a),
        "b": None if one.b is None else _side(one.path, one.b),
        "mask": None if one.mask is None else one.mask.id,
    }


def _side(path: str, value: Value) -> dict[str, Any]:
    return _size(path, value) if value.type in _COUNTED else _leaf(path, value)


def _size(path: str, value: Value) -> dict[str, Any]:
    return {
        "offset": value.offset,
        "size": value.size,
        "type": cast("Literal['ram block', 'section']", value.type),
        "value": cast("int | None", value.value),
        **_words(path, value),
    }


def _number(path: str, value: Value) -> dict[str, Any]:
    return {
        "offset": value.offset,
        "size": value.size,
        "type": value.type,
        "value": cast("int | None", value.value),
        **_words(path, value),
    }


def _leaf(path: str, value: Value) -> dict[str, Any]:
    return {
        "offset": value.offset,
        "size": value.size,
        **typed(value),
        **_words(path, value),
    }


def _words(path: str, value: Value) -> dict[str, Any]:
    names = bit_names(path, value)
    words = meaning(path, value)
    return {
        **({} if names is None else {"names": names}),
        **({"meaning": words} if words else {}),
    }
