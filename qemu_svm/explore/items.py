"""What the explorer shows of one or two streams, without a terminal.

An item is one line of the tree; the tree below it is made when it is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from rich.text import Text

from qemu_svm import api
from qemu_svm.errors import PathError, SvmStreamError
from qemu_svm.machine.paths import below, section_label
from qemu_svm.machine.sections import section_values
from qemu_svm.render.escape import printable
from qemu_svm.render.text.values import brief, words
from qemu_svm.render.words import description
from qemu_svm.stream import Value
from qemu_svm.stream.vmstate.values import join

if TYPE_CHECKING:
    from qemu_svm.findings.diff import Difference
    from qemu_svm.rules import Finding

FINDINGS = "findings"
DIFFERENCES = "differences"
_SECTION = "section:"


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the tree.

    :param path: as for ``show``; of a finding or a difference, the place it is about; empty if
        it is about none.
    :param kind: ``node`` for a part of the stream, ``group``, ``finding`` or ``difference``.
    :param opens: something is below it.
    """

    label: str
    path: str
    kind: str = "node"
    opens: bool = False
    text: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One value of the table.

    :param other: the value in the second stream; None without one.
    :param differs: whether the two differ.
    """

    path: str
    name: str
    value: Text
    offset: int
    size: int
    other: Text | None = None
    differs: bool = False


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes around a value.

    :param start: offset of the first byte.
    :param at, size: the value, offset in the stream and bytes.
    """

    data: bytes
    start: int
    at: int
    size: int


class Explorer:
    """One stream, and perhaps a second one beside it."""

    def __init__(self, dump: api.Dump, other: api.Dump | None = None) -> None:
        self.dump = dump
        self.other = other

    # The tree.

    def roots(self) -> list[Item]:
        """Return the first level: header, vCPUs, sections, what is wrong, what differs."""
        names = below(self.dump.machine, "")
        plain = [name for name in names if not name.startswith(_SECTION)]
        found = [Item(printable(name), name, opens=True) for name in plain]
        found.append(Item("sections", "", "group", opens=True))
        found.append(Item(FINDINGS, "", "group", opens=True))
        if self.other is not None:
            found.append(Item(DIFFERENCES, "", "group", opens=True))
        return found

    def children(self, item: Item) -> list[Item]:
        """Return what is below an item."""
        if item.kind == "group":
            if item.label == FINDINGS:
                return list(self._findings())
            if item.label == DIFFERENCES:
                return list(self._differences())
            names = below(self.dump.machine, _SECTION)
            return [Item(printable(name.removeprefix(_SECTION)), name, opens=True)
                    for name in names]  # fmt: skip
        value = self.value(item.path)
        if value is None:
            return []
        return [
            Item(printable(child.name), join(item.path, child.name), opens=True)
            for child in value.children
            if child.children
        ]

    def _findings(self) -> Iterator[Item]:
        for one in self.findings:
            label = f"{one.severity.value}: {one.rule}"
            path = one.path or ("" if one.offset is None else f"@{one.offset:#x}")
            text = f"{one.message}" + (f" — {one.do}" if one.do else "")
            yield Item(label, path, "finding", text=printable(text))
        if not self.findings:
            yield Item("none", "", "finding", text="nothing wrong was found")

    @cached_property
    def findings(self) -> Sequence[Finding]:
        """What ``inspect`` and ``check`` find."""
        found = list(self.dump.problems)
        seen = {(one.rule, one.message) for one in found}
        found += [one for one in self.dump.check().findings if (one.rule, one.message) not in seen]
        return found

    def _differences(self) -> Iterator[Item]:
        for one in self.compared:
            mask = f" (masked: {one.mask.id})" if one.mask is not None else ""
            here = "" if one.a is None else brief(one.a)
            there = "" if one.b is None else brief(one.b)
            text = f"{one.path}: {here or '(absent)'} -> {there or '(absent)'}{mask}"
            yield Item(printable(one.path), one.path, "difference", text=printable(text))
        if not self.compared:
            yield Item("none", "", "difference", text="no differences")

    @cached_property
    def compared(self) -> Sequence[Difference]:
        """The differences to the second stream, RAM apart; those that count first."""
        if self.other is None:
            return ()
        from qemu_svm.findings.masks import DEFAULT

        comparison = api.compare_dumps(self.dump, self.other, DEFAULT).comparison
        return sorted(comparison.differences, key=lambda one: one.mask is not None)

    # Values.

    def value(self, path: str, dump: api.Dump | None = None) -> Value | None:
        """Return what is at a path; None if there is nothing, or it cannot be decoded."""
        try:
            return (dump or self.dump).show(path).place.value if path else None
        except SvmStreamError:
            return None

    def parent(self, path: str) -> str:
        """Return the path of what holds a value; of a root, itself."""
        at = len(path)
        while (at := max(path.rfind(".", 0, at), path.rfind("[", 0, at))) > 0:
            value = self.value(path[:at])
            if value is not None and any(join(path[:at], c.name) == path for c in value.children):
                return path[:at]
        return path

    def canonical(self, text: str) -> str:
        """Return the path that somebody typed: a path, ``@OFFSET``, or ``0xOFFSET``.

        :raises PathError: it names nothing.
        :raises SvmStreamError: what is there cannot be read.
        """
        text = text.strip()
        wanted = f"@{text}" if text[:1].isdecimal() else text
        if not wanted:
            raise PathError("no path was given")
        return self.dump.show(wanted).place.path

    def rows(self, path: str) -> list[Row]:
        """Return the values at a path: its children, or itself."""
        value = self.value(path)
        if value is None:
            return []
        there = self.value(path, self.other) if self.other is not None else None
        if not value.children:
            return [self._row(path, value, there)]
        beside = {child.name: child for child in there.children} if there is not None else {}
        seen: set[str] = set()
        found = []
        for child in value.children:
            # A path leads to the first of its name; the others are named by their offsets.
            again = child.name in seen and not child.children
            seen.add(child.name)
            name = f"@{child.offset:#x}" if again else join(path, child.name)
            found.append(self._row(name, child, beside.get(child.name)))
        return found

    def _row(self, path: str, value: Value, there: Value | None) -> Row:
        here = words(path, value)
        if self.other is None:
            return Row(path, printable(value.name), here, value.offset, value.size)
        other = Text("(absent)") if there is None else words(path, there)
        differs = not _equal(value, there)
        return Row(path, printable(value.name), here, value.offset, value.size, other, differs)

    def about(self, path: str) -> str:
        """Return what a field is, in words; empty if there is nothing to say."""
        return description(path) or ""

    def bytes_around(self, offset: int, size: int, rows: int) -> Bytes | None:
        """Return whole rows of 16 bytes that begin with a value's; None for one without bytes."""
        if size == 0:
            return None
        start = offset - offset % 16
        if size <= (rows - 2) * 16:
            start = max(0, start - 16)  # a row before it, for the eye
        data = self.dump.machine.stream.source.read_at(start, rows * 16)
        return Bytes(data, start, offset, size)

    def search(self, text: str, after: str = "") -> Iterator[str]:
        """Yield paths whose name or value holds a text, those after a path first.

        A number, such as ``0x1000``, is also compared with numeric values.
        """
        wanted = text.casefold()
        try:
            number: int | None = int(text, 0)
        except ValueError:
            number = None
        early: list[str] = []
        passed = not after
        for path, value in self._everything():
            if path == after:
                passed = True
                continue
            met = wanted in path.casefold() or (
                isinstance(value.value, str) and wanted in value.value.casefold()
            )
            is_number = isinstance(value.value, int) and not isinstance(value.value, bool)
            if not (met or (number is not None and is_number and value.value == number)):
                continue
            if passed:
                yield path
            else:
                early.append(path)
        yield from early

    def _everything(self) -> Iterator[tuple[str, Value]]:
        for root, value in self._roots():
            yield root, value
            for path, node in value.walk():
                yield join(root, path), node

    def _roots(self) -> Iterator[tuple[str, Value]]:
        machine = self.dump.machine
        for name in below(machine, ""):
            if not name.startswith(_SECTION) and (value := self.value(name)) is not None:
                yield name, value
        for record in machine.stream.sections():
            with suppress(SvmStreamError):
                value = section_values(machine, record)
                if value is not None:
                    yield _SECTION + section_label(machine, record), value

    # Guest memory.

    def worlds(self, path: str) -> list[str]:
        """Return the address spaces in which an address may be meant, the likeliest first."""
        vcpu = self._vcpu_of(path)
        try:
            usual = self.dump.memory.default_world(vcpu)
        except SvmStreamError:
            usual = "l1p"
        name = path.rpartition(".")[2]
        physical = ("_pa", "_base_pa", "cr3", "vmcb12", "_addr", "msrpm", "iopm", "vm_hsave")
        order = ["l1p", "l1v", "l2p", "l2v"]
        first = usual
        if ".nested" in path:
            first = "l1v"
        if any(part in name for part in physical):
            first = "l2p" if first == "l2v" else "l1p"
        return [first, *(one for one in order if one != first)]

    def memory(self, world: str, address: int, size: int, path: str = "") -> Iterable[Text]:
        """Return rows of guest memory; what cannot be read is said.

        :param path: of the value that was followed: its vCPU's tables are used.
        """
        try:
            space = self.dump.memory.world(world, self._vcpu_of(path))
            pieces = list(space.pieces(address, size))
        except SvmStreamError as error:
            return [Text(printable(str(error)))]
        lines: list[Text] = []
        for piece in pieces:
            if piece.data:
                lines += rows_of(piece.data, piece.address)
            else:
                lines.append(Text(f"{piece.address:#x}: {piece.status}, {piece.size:#x} bytes"))
        return lines

    def _vcpu_of(self, path: str) -> int:
        head = path.partition(".")[0]
        number = head.removeprefix("vcpu")
        return int(number) if head != number and number.isdecimal() else 0


def rows_of(data: bytes, start: int, marked: range = range(0)) -> Iterator[Text]:
    """Return rows of 16 bytes with their offsets; ``marked`` offsets are in reverse video."""
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        line = Text(f"{start + at:08x} ")
        for index, byte in enumerate(row):
            style = "reverse" if start + at + index in marked else ""
            line.append(" ")
            line.append(f"{byte:02x}", style)
        line.append("   " * (16 - len(row)) + "  ")
        for index, byte in enumerate(row):
            style = "reverse" if start + at + index in marked else ""
            line.append(chr(byte) if 32 <= byte < 127 else ".", style)
        yield line


def _equal(a: Value, b: Value | None) -> bool:
    if b is None or a.value != b.value or len(a.children) != len(b.children):
        return False
    return all(
        left.name == right.name and _equal(left, right)
        for left, right in zip(a.children, b.children, strict=True)
    )
