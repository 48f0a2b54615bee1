"""Compares two streams field by field.

Everything is compared by name, never by position: sections by (name, instance,
occurrence), fields by path, so streams of two QEMU versions with other section
ids and another order can be compared.  What is in the vCPU's tree (registers,
segments, nested state) is compared there and left out of its ``cpu`` section.

Names of fields are not on the wire.  Fields without a partner that are at the same
position in both streams, with equal types and sizes, are taken for renamed and
compared; QEMU does rename fields (``num_timers`` became ``num_timers_save``).

Arrays are compared element by element; neighbours with equal differences become ranges.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby, islice

from qemu_svm.errors import StreamError
from qemu_svm.findings.masks import DEFAULT, Mask, Masks, selects
from qemu_svm.machine import Machine, Vcpu
from qemu_svm.machine.paths import configuration_values, section_label, vcpu_tree
from qemu_svm.machine.sections import section_values
from qemu_svm.stream import Kind, Record, Value
from qemu_svm.stream.vmstate.values import join

_NAMED = (Kind.START, Kind.FULL)
_MOST_RANGES = 1000  # of one field; the rest becomes one range
_PIECE = 1 << 16  # elements that are compared at once
_UNLIKE = re.compile(rb"[^\0]+")
_FROM_FIRST_TO_LAST = re.compile(rb"[^\0](?s:.*[^\0])?")
_MOST_KEPT = 1 << 20  # elements of a range whose values are kept
_ONE_VALUE = frozenset({"intercepts"})
"""Arrays that are compared as a whole."""

CONFIGURATION = "configuration"
RAM_BLOCKS = "RAM blocks"
SECTIONS = "sections"
DEVICES = "devices"


class Change(StrEnum):
    """Kinds of differences."""

    VALUE = "value"
    SIZE = "size"
    """Equal numbers in fields of different width."""
    ONLY_A = "only_a"
    ONLY_B = "only_b"


@dataclass(frozen=True, slots=True)
class Difference:
    """One field or range that differs.

    :param group: ``configuration``, ``RAM blocks``, ``sections``, ``vcpu0``,
        ``vcpu0 nested``, ``devices``.
    :param path: in the first stream; of a range, ``name[3..7]``.
    :param a: value in the first stream, with its offset; None if it has none.
    :param mask: the mask that covers it; None if it counts.
    """

    group: str
    path: str
    change: Change
    a: Value | None
    b: Value | None
    mask: Mask | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences of two streams, in stream order within their groups.

    :param renamed: paths in the first stream and field names in the second.
    :param problems: (``a`` or ``b``, why a part could not be compared).
    """

    differences: tuple[Difference, ...]
    renamed: tuple[tuple[str, str], ...] = ()
    problems: tuple[tuple[str, StreamError], ...] = ()

    @property
    def counting(self) -> tuple[Difference, ...]:
        """Differences that no mask covers."""
        return tuple(one for one in self.differences if one.mask is None)

    def masked(self) -> dict[str, list[Difference]]:
        """Masked differences by the mask's id."""
        found: dict[str, list[Difference]] = {}
        for one in self.differences:
            if one.mask is not None:
                found.setdefault(one.mask.id, []).append(one)
        return found


def compare(a: Machine, b: Machine, masks: Sequence[Mask] = DEFAULT) -> Comparison:
    """Compare two machines without the content of RAM, see :mod:`qemu_svm.findings.ram_diff`."""
    return _Comparer(a, b, Masks(tuple(masks))).run()


@dataclass(frozen=True, slots=True)
class _Covered:
    # Byte ranges of the two streams that were compared under a better name.
    a: frozenset[tuple[int, int]] = frozenset()
    b: frozenset[tuple[int, int]] = frozenset()

    def has(self, a: Value, b: Value) -> bool:
        return _inside(self.a, a) or _inside(self.b, b)


def _inside(ranges: frozenset[tuple[int, int]], value: Value) -> bool:
    return any(start <= value.offset and value.end <= end for start, end in ranges)


_NOTHING = _Covered()


@dataclass(frozen=True, slots=True)
class _Bytes:
    # Two sections of one layout, and where they start.
    a: bytes
    b: bytes
    a_at: int
    b_at: int

    def equal(self, a: Value, b: Value) -> bool:
        if a.size != b.size:
            return False
        left, right = a.offset - self.a_at, b.offset - self.b_at
        return self.a[left : left + a.size] == self.b[right : right + b.size]


_FEW = 1 << 20


@dataclass(frozen=True, slots=True)
class _Content:
    # The bytes of a section, read where they are looked at.
    machine: Machine
    record: Record

    def __len__(self) -> int:
        return self.record.payload_size

    def __getitem__(self, part: slice) -> bytes:
        start, end, _ = part.indices(len(self))
        return self.machine.stream.source.read_at(self.record.payload + start, end - start)


_Elements = bytes | tuple[int, ...] | _Content


class _Comparer:
    def __init__(self, a: Machine, b: Machine, masks: Masks) -> None:
        self._a = a
        self._b = b
        self._masks = masks
        self._renamed: list[tuple[str, str]] = []
        self._problems: list[tuple[str, StreamError]] = []
        self._group = ""
        self._covered = _NOTHING
        self._bytes: _Bytes | None = None
        self._vcpus = {
            side: {vcpu.section.offset: vcpu.section for vcpu in machine.vcpus}
            for side, machine in (("a", a), ("b", b))
        }

    def run(self) -> Comparison:
        if self._a.form is not None or self._b.form is not None:
            return Comparison(tuple(self._states()), (), ())
        found = list(self._configuration())
        found += self._blocks()
        pairs = _matched(self._a, self._b)
        found += self._sections(pairs)
        covered: dict[int, _Covered] = {}
        for index in sorted({v.index for m in (self._a, self._b) for v in m.vcpus}):
            found += self._vcpu(index, covered)
        sections = (
            self._section(ours, theirs, covered) for ours, theirs in pairs if ours and theirs
        )
        # The rest of the vCPUs' sections comes before the devices.
        found += sorted((one for part in sections for one in part), key=_device_last)
        return Comparison(tuple(found), tuple(self._renamed), tuple(self._problems))

    def _states(self) -> Iterator[Difference]:
        # One of the two has state of vCPUs only: what both have is compared by its values.
        for index in sorted({vcpu.index for vcpu in (*self._a.vcpus, *self._b.vcpus)}):
            ours, theirs = (_by_index(machine, index) for machine in (self._a, self._b))
            self._group = name = f"vcpu{index}"
            if ours is None or theirs is None:
                there = ours or theirs
                assert there is not None
                yield from self._only(name, _bare(vcpu_tree(there)), ours is not None)
                continue
            for part in ("registers", "segments", "nested"):
                left, right = (vcpu_tree(vcpu).child(part) for vcpu in (ours, theirs))
                self._group = f"{name} nested" if part == "nested" else name
                path = f"{name}.{part}"
                if left is not None and right is not None:
                    found = self._nodes(path, _common(left, right), _common(right, left))
                    yield from (each for each in found if each.change is not Change.SIZE)
                elif part == "nested" and ours.has("NESTED_STATE") and theirs.has("NESTED_STATE"):
                    one = left or right
                    if one is not None:
                        yield from self._only(path, _bare(one), left is not None)

    # The parts of a stream.

    def _difference(
        self, path: str, change: Change, a: Value | None, b: Value | None
    ) -> Difference:
        return Difference(self._group, path, change, a, b, self._masks.find(path, a, b))

    def _configuration(self) -> Iterator[Difference]:
        self._group = CONFIGURATION
        version = [Value("version", "u32", 4, 4, m.stream.version) for m in (self._a, self._b)]
        yield from self._leaves("header.version", *version)
        yield from self._named("configuration", *map(configuration_values, (self._a, self._b)))

    def _blocks(self) -> Iterator[Difference]:
        self._group = RAM_BLOCKS
        a, b = (
            {r.name: Value(r.name, "ram block", r.offset, 0, r.used_length) for r in machine.blocks}
            for machine in (self._a, self._b)
        )
        yield from self._named("ram", a, b)

    def _sections(self, pairs: _Pairs) -> Iterator[Difference]:
        self._group = SECTIONS
        for ours, theirs in pairs:
            machine, record = (self._a, ours) if ours else (self._b, theirs)
            assert record is not None
            name = record.name or ""
            path = f"section:{section_label(machine, record)}"
            if ours is None or theirs is None:
                value = Value(name, "section", record.offset, record.size)
                yield from self._only(path, value, ours is not None)
            elif ours.version_id != theirs.version_id:
                a, b = (Value("version", "u32", r.payload - 4, 4, r.version_id)
                        for r in (ours, theirs))  # fmt: skip
                yield self._difference(f"{path} version", Change.VALUE, a, b)

    def _vcpu(self, index: int, covered: dict[int, _Covered]) -> Iterator[Difference]:
        name = f"vcpu{index}"
        self._group = name
        ours, theirs = (_by_index(machine, index) for machine in (self._a, self._b))
        if ours is None or theirs is None:
            there = ours or theirs
            assert there is not None
            yield from self._only(name, _bare(vcpu_tree(there)), ours is not None)
            return
        a, b = vcpu_tree(ours), vcpu_tree(theirs)
        covered[ours.section.offset] = _Covered(_ranges(a), _ranges(b))
        for part in ("registers", "segments", "nested"):
            self._group = f"{name} nested" if part == "nested" else name
            left, right = a.child(part), b.child(part)
            if left is not None and right is not None:
                yield from self._nodes(f"{name}.{part}", left, right)
            elif left is not None or right is not None:
                yield from self._only(f"{name}.{part}", _bare(left or right or a), left is not None)

    def _section(
        self, ours: Record, theirs: Record, covered: dict[int, _Covered]
    ) -> list[Difference]:
        if ours.kind is not Kind.FULL or theirs.kind is not Kind.FULL:
            return []
        content = self._comparable(ours, theirs)
        if content is not None and content.a == content.b:
            return []
        path = f"section:{section_label(self._a, ours)}"
        left, right = self._decoded("a", self._a, ours), self._decoded("b", self._b, theirs)
        self._bytes = content
        self._covered = covered.get(ours.payload, _NOTHING)
        vcpu = self._covered is not _NOTHING
        self._group = f"vcpu{ours.instance_id}" if vcpu else DEVICES
        if left is None or right is None:
            a, b = _undecoded(ours), _undecoded(theirs)
            both = _Content(self._a, ours), _Content(self._b, theirs)
            found = list(self._ranges(path, a, b, *both))
        else:
            found = self._nodes(path, left, right)
        self._covered, self._bytes = _NOTHING, None
        return found

    def _comparable(self, ours: Record, theirs: Record) -> _Bytes | None:
        # The bytes of two sections of one layout, if they are few: equal ones mean the same.
        a, b = self._a.stream, self._b.stream
        left, right = a.device(ours), b.device(theirs)
        if max(ours.payload_size, theirs.payload_size) > _FEW:
            return None
        if (left and left.layout) != (right and right.layout):
            return None
        return _Bytes(
            a.source.read_at(ours.payload, ours.payload_size),
            b.source.read_at(theirs.payload, theirs.payload_size),
            ours.payload,
            theirs.payload,
        )

    def _decoded(self, side: str, machine: Machine, record: Record) -> Value | None:
        known = self._vcpus[side].get(record.payload)
        if known is not None:
            return known
        try:
            return section_values(machine, record)
        except StreamError as error:
            if error not in machine.problems:
                self._problems.append((side, error))
            return None

    # Trees.

    def _only(self, path: str, value: Value, ours: bool) -> Iterator[Difference]:  # noqa: FBT001
        if ours:
            yield self._difference(path, Change.ONLY_A, value, None)
        else:
            yield self._difference(path, Change.ONLY_B, None, value)

    def _named(self, prefix: str, a: dict[str, Value], b: dict[str, Value]) -> Iterator[Difference]:
        for name in a | b:
            path = f"{prefix}.{name}"
            if name in a and name in b:
                yield from self._leaves(path, a[name], b[name])
            else:
                yield from self._only(path, a.get(name) or b[name], name in a)

    def _nodes(self, path: str, a: Value, b: Value) -> list[Difference]:
        if self._bytes is not None and self._bytes.equal(a, b):
            return []
        if a.children and b.children:
            if all(child.name.startswith("[") for child in a.children + b.children):
                return self._elements(path, a, b)
            return [
                one
                for left, right in self._aligned(path, a, b)
                for one in self._child(path, left, right)
            ]
        if a.children or b.children:
            if self._covered.has(a, b):
                return []
            return [self._difference(path, Change.VALUE, _bare(a), _bare(b))]
        return list(self._leaves(path, a, b))

    def _child(self, path: str, a: Value | None, b: Value | None) -> list[Difference]:
        if a is not None and b is not None:
            return self._nodes(join(path, a.name), a, b)
        value = a or b
        assert value is not None
        ranges = self._covered.a if a is not None else self._covered.b
        if _inside(ranges, value):
            return []
        return list(self._only(join(path, value.name), _bare(value), a is not None))

    def _aligned(
        self, path: str, a: Value, b: Value
    ) -> Iterator[tuple[Value | None, Value | None]]:
        # Children by name; those without a partner may have been renamed.
        if [one.name for one in a.children] == [one.name for one in b.children]:
            yield from zip(a.children, b.children, strict=True)
            return
        left, right = _occurrences(a), _occurrences(b)
        renamed: dict[int, Value] = {}
        taken: set[int] = set()
        lonely = _runs(left, set(right))
        for anchor, others in _runs(right, set(left)).items():
            run = lonely.get(anchor, [])
            if _alike(run, others):
                for ours, theirs in zip(run, others, strict=True):
                    renamed[id(ours)] = theirs
                    taken.add(id(theirs))
                    self._renamed.append((join(path, ours.name), theirs.name))
        for key, value in left.items():
            yield value, right.get(key) or renamed.get(id(value))
        for key, value in right.items():
            if key not in left and id(value) not in taken:
                yield None, value

    def _elements(self, path: str, a: Value, b: Value) -> list[Difference]:
        # Neighbours with equal differences become one.
        found: list[list[Difference]] = []
        for index in range(max(len(a.children), len(b.children))):
            left = a.children[index] if index < len(a.children) else None
            right = b.children[index] if index < len(b.children) else None
            found.append(self._child(path, left, right))
        result: list[Difference] = []
        for _, group in groupby(
            enumerate(found), lambda item: _signature(item[1], f"{path}[{item[0]}]")
        ):
            run = list(group)
            first, last = run[0][0], run[-1][0]
            for one in run[0][1]:
                rest = one.path[len(f"{path}[{first}]") :]
                label = f"[{first}..{last}]" if last > first else f"[{first}]"
                result.append(replace(one, path=f"{path}{label}{rest}"))
        return result

    # Leaves.

    def _leaves(self, path: str, a: Value, b: Value) -> Iterator[Difference]:
        if (a.value == b.value and a.size == b.size) or self._covered.has(a, b):
            return
        if isinstance(a.value, (bytes, tuple)) and isinstance(b.value, type(a.value)):
            if a.value != b.value:
                if a.name in _ONE_VALUE:
                    yield self._difference(path, Change.VALUE, a, b)
                else:
                    yield from self._ranges(path, a, b, a.value, b.value)
        elif a.value != b.value:
            yield self._difference(path, Change.VALUE, a, b)
        elif a.size != b.size and isinstance(a.value, int):
            yield self._difference(path, Change.SIZE, a, b)

    def _ranges(
        self, path: str, a: Value, b: Value, left: _Elements, right: _Elements
    ) -> Iterator[Difference]:
        # Runs of differing elements that share a mask (or have none).
        whole = self._masks.find(path, None, None)
        some = [] if whole else self._masks.of_elements(path)
        short = min(len(left), len(right))
        if some or self._covered is not _NOTHING:
            sides = (a, left), (b, right)
            runs = self._split(differing(left, right), sides, short, some)
        else:
            runs = differing(left, right, _MOST_RANGES)
        for number, (first, last) in enumerate(_folded(runs, short)):
            beyond = first >= short
            mask = whole
            if mask is None and number < _MOST_RANGES:
                mask = next((m for m in some if selects(m, first)), None)
            name = f"{path}[{first}]" if first == last else f"{path}[{first}..{last}]"
            ours = None if beyond and len(left) == short else _slice(a, left, first, last)
            theirs = None if beyond and len(right) == short else _slice(b, right, first, last)
            change = Change.VALUE if ours and theirs else Change.ONLY_A if ours else Change.ONLY_B
            yield Difference(self._group, name, change, ours, theirs, mask)

    def _split(
        self,
        runs: Iterator[tuple[int, int]],
        sides: tuple[tuple[Value, _Elements], tuple[Value, _Elements]],
        short: int,
        masks: Sequence[Mask],
    ) -> Iterator[tuple[int, int]]:
        # Runs whose elements share a mask, without those that were compared elsewhere.
        covered = self._covered is not _NOTHING

        def label(index: int) -> str | None:
            if covered and index < short:
                a, b = (_slice(*side, index, index) for side in sides)
                if self._covered.has(a, b):
                    return None
            return next((mask.id for mask in masks if selects(mask, index)), "")

        for first, last in runs:
            for name, group in groupby(range(first, last + 1), label):
                if name is not None:
                    begin = end = next(group)
                    for index in group:
                        end = index
                    yield begin, end


def differing(a: _Elements, b: _Elements, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of elements that differ.

    The elements that one side lacks are a run of their own.

    :param most: after so many runs, several may be one, with what is between them.
    """
    short, wide = sorted((len(a), len(b)))
    begin = end = found = 0  # of a run that may go on; runs before it
    most = short if most is None else most
    for base in range(0, short, _PIECE):
        size = min(_PIECE, short - base)
        left, right = a[base : base + size], b[base : base + size]
        if left == right:
            continue
        if isinstance(left, bytes) and isinstance(right, bytes):
            both = int.from_bytes(left, "big") ^ int.from_bytes(right, "big")
            unlike = both.to_bytes(size, "big")
        else:
            unlike = bytes(one != other for one, other in zip(left, right, strict=True))
        runs = _FROM_FIRST_TO_LAST if found > most else _UNLIKE
        for run in runs.finditer(unlike):
            first, after = base + run.start(), base + run.end()
            if first > end:
                if end > begin:
                    yield begin, end - 1
                    found += 1
                begin = first
            elif end == begin:
                begin = first
            end = after
    if end > begin:
        yield begin, end - 1
    if wide > short:
        yield short, wide - 1


def _folded(runs: Iterator[tuple[int, int]], short: int) -> Iterator[tuple[int, int]]:
    # Above the maximum, the rest becomes one range (or two, if one side is shorter).
    yield from islice(runs, _MOST_RANGES)
    rest: dict[bool, tuple[int, int]] = {}
    for first, last in runs:
        beyond = first >= short
        rest[beyond] = rest.get(beyond, (first, last))[0], last
    yield from rest.values()


_Key = tuple[str, int, int]
_Pairs = list[tuple[Record | None, Record | None]]


def _matched(a: Machine, b: Machine) -> _Pairs:
    left, right = _keyed(a), _keyed(b)
    pairs: _Pairs = [(record, right.pop(key, None)) for key, record in left.items()]
    return pairs + [(None, record) for record in right.values()]


def _keyed(machine: Machine) -> dict[_Key, Record]:
    seen: Counter[tuple[str, int]] = Counter()
    found: dict[_Key, Record] = {}
    for record in machine.stream.records:
        if record.kind in _NAMED:
            name = record.name or "", record.instance_id or 0
            found[*name, seen[name]] = record
            seen[name] += 1
    return found


def _by_index(machine: Machine, index: int) -> Vcpu | None:
    return next((vcpu for vcpu in machine.vcpus if vcpu.index == index), None)


def _ranges(tree: Value) -> frozenset[tuple[int, int]]:
    # Neighbouring leaves are joined, so an array is inside if all of it is.
    leaves = sorted((v.offset, v.offset + v.size) for v in tree.leaves() if v.size)
    joined: list[tuple[int, int]] = []
    for start, end in leaves:
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return frozenset(joined)


def _undecoded(record: Record) -> Value:
    return Value(record.name or "", "opaque", record.payload, record.payload_size)


def _common(value: Value, other: Value) -> Value:
    # Without the fields that the other has not.
    children = tuple(
        _common(child, partner)
        for child in value.children
        if (partner := other.child(child.name)) is not None
    )
    return value._replace(children=children)


def _bare(value: Value) -> Value:
    return value._replace(children=())


def _occurrences(value: Value) -> dict[tuple[str, int], Value]:
    seen: dict[str, int] = {}
    found: dict[tuple[str, int], Value] = {}
    for child in value.children:
        name = child.name
        seen[name] = number = seen.get(name, -1) + 1
        found[name, number] = child
    return found


def _runs(
    children: dict[tuple[str, int], Value], others: set[tuple[str, int]]
) -> dict[tuple[str, int] | None, list[Value]]:
    # Fields without a partner, by the field with a partner before them.
    runs: dict[tuple[str, int] | None, list[Value]] = {}
    anchor: tuple[str, int] | None = None
    for key, child in children.items():
        if key in others:
            anchor = key
        elif child.type != "subsection":
            runs.setdefault(anchor, []).append(child)
    return runs


def _alike(ours: list[Value], theirs: list[Value]) -> bool:
    return [(v.type, v.size) for v in ours] == [(v.type, v.size) for v in theirs]


def _slice(value: Value, elements: _Elements, first: int, last: int) -> Value:
    width = value.size // len(elements) if len(elements) else 0
    start = value.offset + first * width
    size = (last - first + 1) * width
    part = elements[first : min(last + 1, first + _MOST_KEPT)]
    if first == last and isinstance(part, tuple):
        return Value(f"[{first}]", value.type, start, size, part[0])
    return Value(f"[{first}..{last}]", value.type, start, size, part)


def _signature(found: list[Difference], prefix: str) -> tuple[object, ...]:
    # Elements that only one side has are alike, whatever their values.
    return tuple(
        (one.path[len(prefix) :], one.change, one.mask and one.mask.id)
        + ((one.a.value, one.b.value) if one.a and one.b else ())
        for one in found
    )


def _device_last(one: Difference) -> bool:
    return one.group == DEVICES
