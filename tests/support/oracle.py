"""Compare our values with what QEMU's analyze-migration.py prints.

Both are reduced to the bytes of all leaves of a section, in order: a number
printed with all its digits, a buffer as hex, a bool as one byte.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qemu_svm.stream import Stream, Value


def theirs(node: Any) -> bytes:
    """Bytes of a section as the script shows it."""
    return b"".join(_theirs(node))


def _theirs(node: Any) -> Iterator[bytes]:
    if isinstance(node, dict):
        for value in node.values():
            yield from _theirs(value)
    elif isinstance(node, list):
        for value in node:
            yield from _theirs(value)
    elif isinstance(node, bool):
        yield bytes((node,))
    elif node == "nullptr":
        yield b"0"
    else:
        text = str(node).split(" (")[0]
        yield bytes.fromhex(text.removeprefix("0x"))


def ours(stream: Stream, value: Value) -> bytes:
    """Bytes of the leaves of a section as we decode it."""
    return b"".join(_ours(stream, value))


def _ours(stream: Stream, value: Value) -> Iterator[bytes]:
    if value.children:
        for child in value.children:
            yield from _ours(stream, child)
    elif isinstance(value.value, bool):
        yield bytes((value.value,))
    else:
        yield stream.source.read_at(value.offset, value.size)


def differences(stream: Stream, document: dict[str, Any]) -> list[str]:
    """Sections that differ; the script's keys are ``name (section id)``."""
    wrong = []
    for record in stream.sections():
        key = f"{record.name} ({record.section_id})"
        if key not in document:
            wrong.append(f"{key}: the script has no such section")
            continue
        value = stream.values(record)
        if value is None or ours(stream, value) != theirs(document[key]):
            wrong.append(key)
    return wrong
