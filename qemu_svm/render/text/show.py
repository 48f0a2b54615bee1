"""The report of ``show``."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text

from qemu_svm.machine.paths import Place
from qemu_svm.render.escape import printable
from qemu_svm.render.text.base import FAINT, HEADING, columns, entry, named_bits
from qemu_svm.render.words import bit_names, description, meaning, not_migrated
from qemu_svm.stream import Value
from qemu_svm.stream.vmstate.values import join

_ROW = 16
_BRIEF = 8


def report(place: Place, raw: bytes, *, verbose: bool) -> Iterable[Text]:
    """Lines for one node; ``raw`` are its bytes."""
    value = place.value
    yield Text(printable(place.path), HEADING)
    if words := description(place.path):
        yield entry("", words)
    yield entry("offset", f"{value.offset:#x} ({value.offset}), {value.size} bytes")
    yield entry("type", value.type)
    if value.children:
        yield Text()
        yield from children(place, verbose=verbose)
        return
    if isinstance(value.value, bytes) or value.size > _ROW:
        yield from hexdump(raw, value.offset)
    else:
        yield entry("raw", raw.hex(" "))
    if not isinstance(value.value, bytes) and value.value is not None:
        yield entry("value", _words(place.path, value))


def children(place: Place, *, verbose: bool) -> Iterable[Text]:
    """Every field inside a node, one a line."""
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
        words = _words(full, node)
        if note:
            words.append(f"  {note}", FAINT)
        rows.append([f"{node.offset:#x}", path, words])
    yield from columns(rows, ("offset", "field", "value"))
    if hidden:
        yield Text(f"  {hidden} zero fields that never carry anything are hidden (-v shows them)")


def _anything(node: Value) -> bool:
    return any(node.value) if isinstance(node.value, bytes) else bool(node.value)


def _words(path: str, node: Value) -> Text:
    text = named_bits(_plain(node), bit_names(path, node))
    if words := meaning(path, node):
        text.append(f" {words}")
    return text


def _plain(node: Value) -> str:
    leaf = node.value
    if isinstance(leaf, bytes):
        if not any(leaf):
            return f"{len(leaf)} zero bytes"
        more = f" … ({len(leaf)} bytes)" if len(leaf) > _BRIEF else ""
        return leaf[:_BRIEF].hex(" ") + more
    if isinstance(leaf, tuple):
        more = f" … ({len(leaf)} values)" if len(leaf) > _BRIEF else ""
        return " ".join(f"{number:#x}" for number in leaf[:_BRIEF]) + more
    if leaf is None:
        return f"{node.size} bytes"
    if isinstance(leaf, str):
        return repr(printable(leaf))
    return str(leaf).lower() if isinstance(leaf, bool) else f"{leaf:#x}"


def hexdump(data: bytes, offset: int) -> Iterable[Text]:
    """Rows of 16 bytes with offsets; equal rows are squeezed into ``*``."""
    last = b""
    squeezed = False
    for at in range(0, len(data), _ROW):
        row = data[at : at + _ROW]
        if row == last and at + _ROW < len(data):
            if not squeezed:
                yield Text("  *", FAINT)
                squeezed = True
            continue
        last, squeezed = row, False
        line = Text(f"  {offset + at:08x}  ", FAINT)
        line.append(row.hex(" ").ljust(3 * _ROW + 1), "")
        yield line.append("".join(chr(b) if 32 <= b < 127 else "." for b in row))
