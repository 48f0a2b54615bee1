"""The JSON description that QEMU appends to a stream, as a typed tree.

The payload of a section has no length and no tags; the description lists the fields
that were written, in order and with their sizes.  Its quirks determine this module:

* objects may repeat a key (``qtailq``, ``qlist`` and ``gtree`` fields have one
  ``fields`` group per element), so objects are read as lists of pairs;
* ``tmp`` and ``vstruct`` fields carry their content in the field object
  itself, ``struct`` fields under a key of that name;
* ``array_len`` means "this many elements like the first"; if elements vary in size,
  only the first one's is described.

Source: QEMU ``migration/vmstate.c`` (``vmsd_desc_field_start`` and
neighbours), ``migration/savevm.c`` (``vmstate_save``), 5.2 to 11.1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, chain, groupby
from struct import Struct
from typing import Any, NamedTuple, NoReturn

from qemu_svm.errors import LimitExceeded, Malformed
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.stream.vmstate import types

_Pairs = list[tuple[str, Any]]


DEEPEST = 128
"""Nesting that is refused whatever the limits are: decoding is recursive."""


class _Object(list[tuple[str, Any]]):
    # A JSON object as its pairs, in order; a plain list is a JSON array.
    pass


UNKNOWN = -1
"""Size of a field whose length only the wire determines (in built-in layouts)."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A vmstate description: fields in wire order, then subsections.

    ``version`` is that of the sender; it is on the wire only for subsections.
    """

    name: str
    version: int
    fields: tuple[Field, ...]
    subsections: tuple[Fields, ...] = ()
    optional: bool = False
    """Set in built-in layouts: only the wire shows whether the subsection is present."""
    runs: tuple[Run, ...] = field(init=False, repr=False, compare=False)
    """The same fields as they are decoded."""
    types: frozenset[str] = field(init=False, repr=False, compare=False)
    """Of the fields here and in all that is nested: what decoding can find."""

    @property
    def numbers(self) -> Numbers | None:
        """The fields, if they are numbers and nothing else."""
        return self.runs[0].numbers if len(self.runs) == 1 and not self.subsections else None

    def __post_init__(self) -> None:
        object.__setattr__(self, "runs", tuple(_runs(self.fields)))
        inner = [*self.subsections, *chain.from_iterable(one.groups for one in self.fields)]
        types = frozenset(one.type for one in self.fields)
        object.__setattr__(self, "types", _shared(types.union(*(one.types for one in inner))))


@lru_cache(256)
def _shared(types: frozenset[str]) -> frozenset[str]:
    # Most descriptions have the same few types.
    return types


class Numbers(NamedTuple):
    """Consecutive fields that are a number each.

    :param layout: reads them all.
    :param starts: where each begins, from the first.
    """

    layout: Struct
    names: tuple[str, ...]
    types: tuple[str, ...]
    sizes: tuple[int, ...]
    starts: tuple[int, ...]


class Run(NamedTuple):
    """Consecutive fields that are decoded together.

    :param numbers: reads them all, each one number; None if they are something else: one
        field, or several of equal name, which are the elements of one array.
    """

    fields: tuple[Field, ...]
    numbers: Numbers | None = None


@dataclass(frozen=True, slots=True)
class Field:
    """One entry of ``fields``.

    ``size`` is in bytes and, for an array, that of its first element.
    ``array_len`` is None unless the entry stands for several elements.
    ``groups`` holds the nested descriptions: one for a structure, one per
    element (two for a tree: key and value) for lists.
    """

    name: str
    type: str
    size: int
    array_len: int | None = None
    groups: tuple[Fields, ...] = ()

    @property
    def total(self) -> int:
        """Bytes on the wire if all elements are like the first."""
        return self.size * (1 if self.array_len is None else self.array_len)


def _runs(fields: tuple[Field, ...]) -> Iterator[Run]:
    named = (tuple(run) for _, run in groupby(fields, key=lambda field: field.name))
    for code, runs in groupby(named, key=lambda run: "number" if _code(run) else ""):
        if not code:
            yield from map(Run, runs)
            continue
        numbers = tuple(runs)
        all_ = tuple(chain.from_iterable(numbers))
        sizes = tuple(field.size for field in all_)
        yield Run(all_, Numbers(
            Struct(">" + "".join(map(_code, numbers))),
            tuple(field.name for field in all_),
            tuple(field.type for field in all_),
            sizes,
            tuple(accumulate(sizes, initial=0))[:-1],
        ))  # fmt: skip


def _code(run: tuple[Field, ...]) -> str:
    # How struct reads one number; empty for anything else.
    first = run[0]
    scalar = types.SCALARS.get(first.type)
    if len(run) > 1 or first.groups or first.array_len is not None or scalar is None:
        return ""
    if scalar.size != first.size:
        return ""
    if first.type == "bool":
        return "?"
    return types.code(scalar)


@dataclass(frozen=True, slots=True)
class Device:
    """One section of the description.  ``layout.name`` is the vmsd's name."""

    name: str
    instance_id: int
    layout: Fields
    payload_size: int
    """Bytes of the section's payload as described, subsection headers included."""


@dataclass(frozen=True, slots=True)
class Description:
    """The whole description."""

    page_size: int | None
    devices: tuple[Device, ...]


def parse(text: bytes, offset: int, limits: Limits = DEFAULT) -> Description:
    """Read a description.

    :param text: the JSON, as in the stream.
    :param offset: of the text in the stream, for errors.
    :raises Malformed: not JSON, or not a description.
    :raises LimitExceeded: nested deeper than ``limits.description_depth``, or more
        items than ``limits.description_items``.
    """
    # Machines of one kind have the same description: many streams, few descriptions.
    known = _parsed.get((text, limits))
    if known is None:
        known = _parse(text, offset, limits)
        if len(_parsed) >= _MOST_PARSED:
            del _parsed[next(iter(_parsed))]
        if len(text) <= _LARGEST_PARSED:
            _parsed[text, limits] = known
    return known


_MOST_PARSED, _LARGEST_PARSED = 8, 1 << 18
_parsed: dict[tuple[bytes, Limits], Description] = {}


def _parse(text: bytes, offset: int, limits: Limits) -> Description:
    items = sum(map(text.count, (b"{", b"[", b",")))
    if items > limits.description_items:
        raise LimitExceeded(
            "the description has more items than the limit allows",
            offset=offset,
            expected=f"at most {limits.description_items}",
            found=f"{items}",
            hint="raise it with --limit description_items=NUMBER",
        )
    try:
        document = json.loads(
            text.decode("utf-8"), object_pairs_hook=_Object, parse_constant=_no_constant
        )
    except RecursionError as error:
        raise LimitExceeded("the description is nested too deeply", offset=offset) from error
    except UnicodeDecodeError as error:
        raise Malformed(
            "the description is not UTF-8", offset=offset + error.start, found=error.reason
        ) from error
    except ValueError as error:
        where = error.pos if isinstance(error, json.JSONDecodeError) else 0
        raise Malformed(
            "the description is not JSON", offset=offset + where, found=str(error)
        ) from error
    return _Builder(offset, limits).description(document)


def encodable(text: str) -> str:
    """Return a string of JSON with backslash escapes for lone surrogates, which have no bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


class _Builder:
    def __init__(self, offset: int, limits: Limits) -> None:
        self._offset = offset
        self._depth = min(limits.description_depth, DEEPEST)
        self._known: dict[str, tuple[_Pairs, Fields]] = {}

    def _fail(self, what: str, path: str) -> Malformed:
        return Malformed(f"the description has {what}", offset=self._offset, field=path)

    def description(self, document: Any) -> Description:
        top = self._object(document, "top level")
        page_size: int | None = None
        devices: list[Device] = []
        for key, value in top:
            if key == "page_size":
                page_size = self._number(value, key)
            elif key == "devices":
                for index, item in enumerate(self._array(value, key)):
                    devices.append(self._device(item, f"devices[{index}]"))
        return Description(page_size, tuple(devices))

    def _device(self, item: Any, path: str) -> Device:
        pairs = self._object(item, path)
        values = dict(pairs)
        name = self._text(values.get("name"), f"{path}.name")
        instance = self._number(values.get("instance_id"), f"{path}.instance_id")
        # A large machine describes each of its vCPUs, all alike.
        described = [pair for pair in pairs if pair[0] != "instance_id"]
        known, layout = self._known.get(name, ([], None))
        if layout is None or known != described:
            layouts = self._groups(pairs, name, 0)
            if len(layouts) != 1:
                raise self._fail("not exactly one list of fields", path)
            layout = layouts[0]
            self._known[name] = described, layout
        return Device(name, instance, layout, payload_size(layout))

    def _groups(self, pairs: _Pairs, path: str, depth: int) -> tuple[Fields, ...]:
        # An object holds one group of vmsd_name, version, fields, subsections,
        # or several in sequence.
        if depth > self._depth:
            raise LimitExceeded(
                "the description is nested too deeply",
                offset=self._offset,
                field=path,
                expected=f"at most {self._depth} levels",
            )
        groups: list[Fields] = []
        name, version = "", 0
        for key, value in pairs:
            if key == "vmsd_name":
                name, version = self._text(value, path), 0
            elif key == "version":
                version = self._number(value, path)
            elif key == "fields":
                fields = tuple(
                    self._field(item, f"{path}.fields[{index}]", depth + 1)
                    for index, item in enumerate(self._array(value, path))
                )
                groups.append(Fields(name, version, fields))
            elif key == "subsections":
                if not groups:
                    raise self._fail("subsections before fields", path)
                subsections = tuple(
                    self._subsection(item, f"{path}.subsections[{index}]", depth + 1)
                    for index, item in enumerate(self._array(value, path))
                )
                last = groups[-1]
                groups[-1] = Fields(last.name, last.version, last.fields, subsections)
        return tuple(groups)

    def _subsection(self, item: Any, path: str, depth: int) -> Fields:
        groups = self._groups(self._object(item, path), path, depth)
        if len(groups) != 1:
            raise self._fail("not exactly one list of fields", path)
        return groups[0]

    def _field(self, item: Any, path: str, depth: int) -> Field:
        pairs = self._object(item, path)
        values = dict(pairs)
        array_len = values.get("array_len")
        nested = values.get("struct")
        groups = self._groups(pairs if nested is None else self._object(nested, path), path, depth)
        return Field(
            name=self._text(values.get("name"), f"{path}.name"),
            type=self._text(values.get("type", "buffer"), f"{path}.type"),
            size=self._number(values.get("size"), f"{path}.size"),
            array_len=None if array_len is None else self._number(array_len, f"{path}.array_len"),
            groups=groups,
        )

    # Checks of the values' types.

    def _object(self, value: Any, path: str) -> _Pairs:
        if not isinstance(value, _Object):
            raise self._fail("something that is not an object", path)
        return value

    def _array(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list) or isinstance(value, _Object):
            raise self._fail("something that is not a list", path)
        return value

    def _text(self, value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise self._fail("something that is not a name", path)
        return value if value.isascii() else encodable(value)

    def _number(self, value: Any, path: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
            raise self._fail("something that is not a plausible number", path)
        return value


def has_null_arrays(layout: Fields) -> bool:
    """Whether an array of pointers is described by its first element, a NULL.

    QEMU up to 9.2 does not describe the elements that are not NULL (``css`` in
    ``s390_css``), so such a description may be incomplete.
    """
    return any(
        (field.type == "struct" and not field.groups and field.array_len is not None)
        or any(has_null_arrays(group) for group in field.groups)
        for field in layout.fields
    )


def payload_size(layout: Fields) -> int:
    """Return the size of a payload according to ``layout``, headers of subsections included."""
    total = sum(field.total for field in layout.fields)
    for subsection in layout.subsections:
        total += subsection_header_size(subsection.name) + payload_size(subsection)
    return total


def subsection_header_size(name: str) -> int:
    """Return the size of a subsection's marker, counted name and version."""
    return 1 + 1 + len(name.encode()) + 4
