"""Decode the bytes of a section by its description.

The wire takes precedence: counted strings, lists and subsections are read as they are,
even if the description disagrees.  The ``size`` in the description is used only for
data whose length is not on the wire (a buffer, an unknown type).

Source: QEMU ``migration/vmstate.c``, ``migration/vmstate-types.c``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from struct import unpack

from qemu_svm.errors import LimitExceeded, Malformed, StreamError, Truncated
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.stream.constants import RecordType
from qemu_svm.stream.reader import Reader, name_text
from qemu_svm.stream.structs import Subsection
from qemu_svm.stream.vmstate import types
from qemu_svm.stream.vmstate.description import UNKNOWN, Field, Fields, Numbers
from qemu_svm.stream.vmstate.values import Leaf, Value, join

_NUMBERS = 4
"""Numbers of an array that take the memory of one value."""


def decode(reader: Reader, layout: Fields, section: str, limits: Limits = DEFAULT) -> Value:
    """Read the payload of ``section`` at the reader's place.

    :raises Truncated: the input ends inside it.
    :raises Malformed: the bytes contradict the description.
    :raises LimitExceeded: more than ``limits.section_values`` values.
    """
    return _Decoder(reader, section, limits.section_values).body(layout, section, "section", "")


def first(
    reader: Reader, layout: Fields, section: str, kinds: frozenset[str], limits: Limits = DEFAULT
) -> Value | None:
    """Read a payload up to the first field whose type is one of ``kinds``; return that.

    Arrays are not looked into.  Raises what :func:`decode` does.
    """
    if kinds.isdisjoint(layout.types):
        return None
    try:
        _Decoder(reader, section, limits.section_values, kinds).body(layout, section, "section", "")
    except _Found as found:
        return found.value
    return None


class _Found(Exception):
    def __init__(self, value: Value) -> None:
        super().__init__()
        self.value = value


class _Decoder:
    def __init__(
        self, reader: Reader, section: str, budget: int, until: frozenset[str] = frozenset()
    ) -> None:
        self._reader = reader
        self._section = section
        self._budget = budget
        self._until = until

    def body(self, layout: Fields, name: str, kind: str, path: str, start: int = -1) -> Value:
        # The fields and subsections of one description.
        start = self._reader.offset if start < 0 else start
        children: list[Value] = []
        for run, numbers in layout.runs:
            if numbers is None:
                children.append(self._run(run, join(path, run[0].name)))
            else:
                children += self._numbers(run, numbers, path)
        for subsection in layout.subsections:
            found = self._subsection(subsection, path)
            if found is not None:
                children.append(found)
        return self._value(name, kind, start, children=tuple(children))

    def _value(
        self, name: str, kind: str, start: int, value: Leaf = None, children: Sequence[Value] = ()
    ) -> Value:
        self._spend(1, start, name)
        return Value(name, kind, start, self._reader.offset - start, value, tuple(children))

    def _spend(self, values: int, start: int, name: str) -> None:
        self._budget -= values
        if self._budget < 0:
            raise LimitExceeded(
                "the section has more values than the limit allows",
                offset=start,
                section=self._section,
                field=name,
                hint="raise it with --limit section_values=NUMBER",
            )

    def _subsection(self, layout: Fields, path: str) -> Value | None:
        start = self._reader.offset
        wanted = layout.name.encode()
        head = self._reader.peek(2 + len(wanted))
        there = head == bytes((RecordType.SUBSECTION, len(wanted) & 0xFF)) + wanted
        if not there and layout.optional:
            return None
        if not there and len(head) == 2 + len(wanted):
            raise Malformed(
                "subsection is missing where the description has it",
                offset=start,
                section=self._section,
                field=join(path, layout.name),
                expected=f"subsection '{layout.name}'",
                found=head[:16].hex(" "),
            )
        self._reader.take(1, "a subsection")
        header = self._reader.structure(Subsection, "the header of a subsection")
        name = name_text(header.name)
        return self.body(layout, name, "subsection", join(path, name), start)

    def _numbers(self, run: tuple[Field, ...], numbers: Numbers, path: str) -> Iterable[Value]:
        size = numbers.layout.size
        if len(self._reader.peek(size)) < size or self._budget < len(run):
            return [self._one(field, field.name, join(path, field.name)) for field in run]
        self._budget -= len(run)
        at = self._reader.offset
        return _leaves(numbers, at, numbers.layout.unpack(self._reader.take(size, path)))

    def _run(self, run: tuple[Field, ...], path: str) -> Value:
        # Consecutive entries of equal name are elements of one array.
        if len(run) == 1:
            field = run[0]
            if field.array_len is None:
                return self._one(field, field.name, path)
            return self._array(field, field.array_len, path)
        start = self._reader.offset
        elements: list[Value] = []
        for field, count in zip(run, _counts(run), strict=True):
            for _ in range(count):
                name = f"[{len(elements)}]"
                elements.append(self._one(field, name, path + name))
        return self._value(run[0].name, "array", start, children=elements)

    def _array(self, field: Field, count: int, path: str) -> Value:
        start = self._reader.offset
        scalar = types.SCALARS.get(field.type)
        if scalar is not None and scalar.size == field.size:
            data = self._take(scalar.size * count, path)
            if scalar == types.SCALARS["uint8"]:
                return self._value(field.name, f"{field.type}[{count}]", start, data)
            self._spend(count // _NUMBERS, start, field.name)
            numbers = unpack(f">{count}{types.code(scalar)}", data)
            return self._value(field.name, f"{field.type}[{count}]", start, numbers)
        if field.size == 0:
            return self._value(field.name, f"{field.type}[{count}]", start)
        elements = self._structures(field, count) or [
            self._one(field, f"[{index}]", f"{path}[{index}]", exact=False)
            for index in range(count)
        ]
        return self._value(field.name, "array", start, children=elements)

    def _structures(self, field: Field, count: int) -> list[Value]:
        # An array of structures of numbers, at once; empty if it is something else.
        plain = field.groups and field.type not in types.LISTS and field.type != types.TREE
        numbers = field.groups[0].numbers if plain else None
        if numbers is None or self._until:
            return []
        size, values = numbers.layout.size, count * (1 + len(numbers.names))
        data = self._reader.peek(size * count)
        if len(data) < size * count or self._budget < values:
            return []
        self._budget -= values
        start = self._reader.offset
        self._reader.offset += len(data)
        return [
            Value(f"[{index}]", field.type, at, size, None, tuple(_leaves(numbers, at, found)))
            for index, (at, found) in enumerate(
                zip(range(start, start + len(data), size), numbers.layout.iter_unpack(data),
                    strict=True)
            )
        ]  # fmt: skip

    def _one(self, field: Field, name: str, path: str, *, exact: bool = True) -> Value:
        # ``exact``: the description's size is that of this element.
        start = self._reader.offset
        exact = exact and field.size != UNKNOWN
        if field.groups and (field.size or not exact):
            try:
                value = self._nested(field, name, path)
            except (Truncated, LimitExceeded):
                raise
            except StreamError:
                if not exact:
                    raise
                value = None
            if value is not None and (not exact or value.size == field.size):
                return value
            self._reader.offset = start
        found = self._value(name, field.type, start, self._leaf(field, path))
        if field.type in self._until:
            raise _Found(found)
        return found

    def _nested(self, field: Field, name: str, path: str) -> Value:
        if field.type not in types.LISTS and field.type != types.TREE:
            return self.body(field.groups[0], name, field.type, path)
        start = self._reader.offset
        step = 1
        if field.type == types.TREE:
            count = self._reader.u32(path)
            step = 2 if len(field.groups) == 2 * count else 1
        elements: list[Value] = []
        for index in range(0, len(field.groups), step):
            self._marker(1, path)
            at, label = self._reader.offset, f"[{len(elements)}]"
            if field.type == types.TREE:
                key = (
                    self.body(field.groups[index], "key", "struct", path)
                    if step == 2
                    else self._key(path)
                )
                element = self.body(field.groups[index + step - 1], "value", "struct", path)
                elements.append(self._value(label, "pair", at, children=(key, element)))
            else:
                elements.append(self.body(field.groups[index], label, "struct", path + label))
        self._marker(0, path)
        return self._value(name, field.type, start, children=elements)

    def _key(self, path: str) -> Value:
        start = self._reader.offset
        return self._value("key", "uint64", start, self._reader.u64(path))

    def _marker(self, wanted: int, path: str) -> None:
        found = self._reader.u8(path)
        if found != wanted:
            raise Malformed(
                "missing marker in a list",
                offset=self._reader.offset - 1,
                section=self._section,
                field=path,
                expected=f"{wanted:#x}",
                found=f"{found:#x}",
            )

    def _leaf(self, field: Field, path: str) -> Leaf:
        if field.type == types.COUNTED_STRING:
            length = self._reader.u8(path)
            return name_text(self._take(length, path))
        if field.type == types.COUNTED_BYTES:
            return self._take(self._reader.u32(path), path)
        data = self._take(field.size, path)
        scalar = types.SCALARS.get(field.type)
        if scalar is None or scalar.size != field.size:
            return data
        number = int.from_bytes(data, "big", signed=scalar.signed)
        return bool(number) if field.type == "bool" else number

    def _take(self, size: int, path: str) -> bytes:
        try:
            return self._reader.take(size, f"field {path}")
        except Truncated as error:
            error.section, error.field = self._section, path
            raise


def _leaves(numbers: Numbers, at: int, found: tuple[int, ...]) -> Iterable[Value]:
    starts = [at + start for start in numbers.starts]
    return map(Value._make, zip(numbers.names, numbers.types, starts, numbers.sizes, found,
                                repeat(())))  # fmt: skip


def _counts(run: tuple[Field, ...]) -> list[int]:
    # If an array of pointers starts with one that is not NULL and contains a NULL,
    # QEMU 10 and later describe the first run with the length of the whole array; a
    # first run of NULLs is described with its own length.
    counts = [1 if field.array_len is None else field.array_len for field in run]
    nulls = [field.type in types.NULLS for field in run]
    if counts[0] > 1 and not nulls[0] and any(nulls):
        counts[0] = max(1, counts[0] - sum(counts[1:]))
    return counts
