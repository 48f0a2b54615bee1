"""Values from a stream in words: for ``show``, ``diff`` and ``vmruns``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.machine.paths import Node
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, columns, named_bits
from qemu_svm.render.words import bit_names, description, meaning, not_migrated
from qemu_svm.stream import Value
from qemu_svm.stream.vmstate.values import join

ROW = 16
"""Bytes on a line of a dump."""
_BRIEF = 8
"""Bytes or elements that are shown of a long value."""


def fields(place: Node, *, verbose: bool) -> Iterable[Text]:
    """Return every field inside a node, one on a line.

    :param verbose: also fields that are reserved and zero.
    """
    rows: list[list[str | Text]] = []
    hidden = 0
    for path, node in place.value.walk():
        if node.children:
            continue
        full = join(place.path, path)
        note = description(full)
        idle = node.name.startswith("reserved") or not_migrated(full)
        if idle and not verbose and not _anything(node):
            hidden += 1
            continue
        value = words(full, node)
        if note:
            value.append(f"  {note}", FAINT)
        rows.append([f"{node.offset:#x}", path, value])
    yield from columns(rows, ("offset", "field", "value"))
    if hidden:
        yield Text(f"  {hidden} unused zero fields are hidden (-v shows them)")


def _anything(node: Value) -> bool:
    return any(node.value) if isinstance(node.value, bytes) else bool(node.value)


def words(path: str, node: Value) -> Text:
    """Return a value, the names of its bits, and what it means."""
    text = named_bits(brief(node), bit_names(path, node))
    if said := meaning(path, node):
        text.append(f" {said}")
    return text


def brief(node: Value, *, decimal: bool = False) -> str:
    """Return a value in brief; of a structure, its type and size.

    :param decimal: how integers are written; else as ``0x…``.
    """
    leaf = node.value
    if leaf is None:
        return f"{node.type}, {node.size} bytes" if node.size else node.type
    if isinstance(leaf, bool):
        return str(leaf).lower()
    if isinstance(leaf, int):
        return str(leaf) if decimal else f"{leaf:#x}"
    if isinstance(leaf, str):
        return repr(printable(leaf))
    if isinstance(leaf, bytes):
        return _bytes(leaf)
    more = f" … ({len(leaf)} values)" if len(leaf) > _BRIEF else ""
    return " ".join(f"{number:#x}" for number in leaf[:_BRIEF]) + more


def _bytes(data: bytes) -> str:
    if len(data) > _BRIEF and not any(data):
        return f"{len(data)} zero bytes"
    return data[:_BRIEF].hex(" ") + (f" … ({len(data)} bytes)" if len(data) > _BRIEF else "")


def hexdump(data: bytes, offset: int) -> Iterable[Text]:
    """Return rows of 16 bytes with offsets; repeated rows are squeezed into ``*``."""
    last = b""
    squeezed = False
    for at in range(0, len(data), ROW):
        row = data[at : at + ROW]
        if row == last and at + ROW < len(data):
            if not squeezed:
                yield Text("  *", FAINT)
                squeezed = True
            continue
        last, squeezed = row, False
        line = Text(f"  {offset + at:08x}  ", FAINT)
        line.append(row.hex(" ").ljust(3 * ROW + 1), "")
        yield line.append("".join(chr(b) if 32 <= b < 127 else "." for b in row))
