"""Which documents a verb prints with ``--json``, their schemas, and what their rows are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from typing import Any, NamedTuple

from qemu_svm.errors import PathError

DOCUMENTS: dict[str, tuple[str, ...]] = {
    "capture": ("capture",),
    "check": ("check", "check_several", "check_rules"),
    "compat": ("compat",),
    "diff": ("diff", "diff_inside", "diff_masks"),
    "doctor": ("doctor",),
    "inside": ("inside",),
    "inspect": ("inspect",),
    "lab bisect": ("lab_bisect",),
    "lab capture": ("lab_capture", "lab_guests"),
    "lab conform": ("lab_conform",),
    "lab list": ("lab_list", "lab_list_available"),
    "lab matrix": ("lab_matrix",),
    "lab patch": ("lab_patch",),
    "lab restore": ("lab_restore",),
    "lab up": ("lab_up",),
    "lab witness": ("lab_witness",),
    "mem core": ("mem_core",),
    "mem disasm": ("mem_disasm",),
    "mem map": ("mem_map", "mem_layout"),
    "mem read": ("mem_read",),
    "mem search": ("mem_search",),
    "mem translate": ("mem_translate",),
    "ram": ("ram",),
    "record": ("record", "converted"),
    "replay": ("replay",),
    "report": ("report",),
    "restore": ("restore", "restore_refused"),
    "roundtrip": ("roundtrip", "restore_refused"),
    "show": ("show",),
    "simulate": ("simulate",),
    "survey": ("survey",),
    "trace": ("trace",),
    "vmruns": ("vmruns", "vmruns_page"),
    "watch": ("watch",),
    "why": ("why",),
}
"""The modules of ``render/json`` by verb; an error is a document of every verb."""

FAILURE = "failure"


class Rows(NamedTuple):
    """What the rows of a document are.

    :param path: of the list, through lists; empty if the document is its own only row.
    :param labels: what else a row has, from what it is in: names and paths.
    """

    path: str
    labels: Mapping[str, str] = {}


ROWS: dict[str, Rows] = {
    "check": Rows("findings"),
    "check_rules": Rows("rules"),
    "check_several": Rows("files.findings", {"file": "files.source.path"}),
    "compat": Rows("findings"),
    "diff": Rows("differences"),
    "diff_inside": Rows("differences"),
    "diff_masks": Rows("masks"),
    "doctor": Rows("checks"),
    "inside": Rows("vcpus"),
    "inspect": Rows("sections"),
    "lab_bisect": Rows("tried"),
    "lab_capture": Rows("captures"),
    "lab_conform": Rows("disagreements"),
    "lab_guests": Rows("guests"),
    "lab_list": Rows("suites"),
    "lab_list_available": Rows("available"),
    "lab_matrix": Rows("cells"),
    "lab_patch": Rows("differences"),
    "lab_restore": Rows("rules"),
    "lab_witness": Rows("parts.fields", {"part": "parts.name"}),
    "mem_disasm": Rows("instructions"),
    "mem_layout": Rows("ranges"),
    "mem_map": Rows("ranges"),
    "mem_read": Rows("runs"),
    "mem_search": Rows("hits"),
    "mem_translate": Rows("walk"),
    "ram": Rows("blocks"),
    "record": Rows("recordings"),
    "replay": Rows("steps"),
    "restore_refused": Rows("findings"),
    "roundtrip": Rows("differences"),
    "show": Rows("children"),
    "simulate": Rows("simulations.steps", {"kernel": "simulations.kernel.name"}),
    "survey": Rows("streams"),
    "trace": Rows("vcpus.phases.ioctls", {"vcpu": "vcpus.index", "phase": "vcpus.phases.kind"}),
    "vmruns": Rows("runs"),
    "why": Rows("answers"),
}
"""The rows of a document without ``--rows``."""


def document_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of one document, by the name of its module."""
    text = files("qemu_svm.render").joinpath("schemas", f"{name}.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def schema_verbs() -> tuple[str, ...]:
    """Return the verbs that have a schema."""
    return tuple(DOCUMENTS)


def schema(verb: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of all documents that a verb prints with ``--json``.

    :param verb: such as ``check`` or ``mem read``.
    :raises PathError: there is no such verb, or it prints no document.
    """
    if verb not in DOCUMENTS:
        near = get_close_matches(verb.lower(), DOCUMENTS, cutoff=0.5)
        raise PathError(f"no verb '{verb}' with --json", near=near)
    shapes, definitions = [], {}
    for name in (*DOCUMENTS[verb], FAILURE):
        shape = document_schema(name)
        definitions.update(shape.pop("$defs", {}))
        shapes.append(shape)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"svmstream {verb} --json",
        "anyOf": _told_apart(shapes, definitions),
        **({"$defs": dict(sorted(definitions.items()))} if definitions else {}),
    }


def _told_apart(
    shapes: Sequence[dict[str, Any]], definitions: Mapping[str, Any]
) -> list[dict[str, Any]]:
    # Members may come, so a document would conform to a smaller one of the same verb: what has
    # a member that only another of them must have is not this one.
    members = [_members(one, definitions) for one in shapes]
    required = {name for _, must in members for name in must}
    found = []
    for shape, (may, _) in zip(shapes, members, strict=True):
        others = [{"required": [name]} for name in sorted(required - may)]
        found.append({**shape, "not": {"anyOf": others}} if others else shape)
    return found


def _members(shape: dict[str, Any], definitions: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    # Those that may be in a document, and those that must.
    parts = [
        definitions[one["$ref"].rpartition("/")[2]] if "$ref" in one else one
        for one in shape.get("anyOf", [shape])
    ]
    may = {name for part in parts for name in part.get("properties", ())}
    return may, set.intersection(*(set(part.get("required", ())) for part in parts))


def rows(document: Mapping[str, Any], found: Rows) -> Iterator[dict[str, Any]]:
    """Yield the rows of a document; itself if it has no list of that path.

    What holds no rows because it could not be read is a row with its ``error``.
    """
    if not found.path or document.get(found.path.partition(".")[0]) is None:
        yield dict(document)
        return
    yield from _rows(document, found.path.split("."), (), found.labels, {})


def _rows(
    holder: Mapping[str, Any],
    path: Sequence[str],
    above: tuple[str, ...],
    labels: Mapping[str, str],
    known: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    here = (*above, path[0])
    inner = holder.get(path[0])
    if inner is None:
        if "error" in holder:
            yield {**known, "error": holder["error"]}
        return
    for one in [inner] if isinstance(inner, dict) else inner:
        if len(path) == 1:
            yield {**known, **one} if isinstance(one, dict) else {**known, path[0]: one}
            continue
        start = ".".join(here) + "."
        named = {
            name: value(one, place.removeprefix(start).split("."))
            for name, place in labels.items()
            if place.startswith(start) and not _deeper(place.removeprefix(start), path[1:])
        }
        yield from _rows(one, path[1:], here, labels, {**known, **named})


def _deeper(place: str, path: Sequence[str]) -> bool:
    # Whether a label is in a list that comes later on the way.
    return place.startswith(f"{path[0]}.")


def value(row: Any, path: Sequence[str]) -> Any:
    """Return what is at a path in a row; None if nothing is."""
    for name in path:
        row = row.get(name) if isinstance(row, dict) else None
    return row


class Shape:
    """A place in a schema: one of the things that may stand there.

    :param schema: of the place.
    :param definitions: ``$defs`` of the document.
    """

    def __init__(self, schema: dict[str, Any], definitions: dict[str, Any]) -> None:
        self._definitions = definitions
        self._parts = list(self._flat(schema, frozenset()))

    def _flat(self, schema: dict[str, Any], seen: frozenset[str]) -> Iterator[dict[str, Any]]:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name not in seen:
                yield from self._flat(self._definitions[name], seen | {name})
        elif "anyOf" in schema:
            for one in schema["anyOf"]:
                yield from self._flat(one, seen)
        else:
            yield schema

    def names(self) -> list[str]:
        """Return the names of all members."""
        return list(
            dict.fromkeys(name for one in self._parts for name in one.get("properties", ()))
        )

    def free(self) -> bool:
        """Whether members of any name may be there."""
        return any(
            not one or "additionalProperties" in one
            or (one.get("type") == "object" and "properties" not in one)
            for one in self._parts
        )  # fmt: skip

    def inside(self, name: str) -> Shape | None:
        """Return a member; None if there is none of this name."""
        found = [
            one["properties"][name] for one in self._parts if name in one.get("properties", ())
        ]
        if not found and not self.free():
            return None
        return Shape({"anyOf": found or [{}]}, self._definitions)

    def items(self) -> Shape | None:
        """Return what a list has; None if this is no list."""
        lists = [one.get("items", {}) for one in self._parts if one.get("type") == "array"]
        if not lists and {} not in self._parts:
            return None
        return Shape({"anyOf": lists or [{}]}, self._definitions)


def document_shape(name: str) -> Shape:
    """Return the shape of a whole document."""
    schema = document_schema(name)
    return Shape(schema, schema.get("$defs", {}))


def lists(shape: Shape, above: str = "", depth: int = 4) -> Iterator[str]:
    """Yield the paths of all lists of objects in a document."""
    for name in shape.names():
        inner = shape.inside(name)
        assert inner is not None
        items = inner.items()
        if items is not None and items.names():
            yield f"{above}{name}"
        if depth and (items or inner).names():
            yield from lists(items or inner, f"{above}{name}.", depth - 1)
