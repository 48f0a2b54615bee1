"""Documents against their schemas: whether they conform, and what a schema would notice."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import jsonschema_rs
import pytest

from qemu_svm.render.documents import DOCUMENTS, FAILURE, Shape, document_schema, schema
from qemu_svm.render.json import check_several, failure
from qemu_svm.results import Result


@cache
def of_verb(verb: str) -> jsonschema_rs.Draft202012Validator:
    """What ``svmstream schema VERB`` prints."""
    return jsonschema_rs.Draft202012Validator(schema(verb))


@cache
def verb_of(name: str) -> str:
    """A verb that prints a document, by the name of the document's module."""
    return next(verb for verb, names in DOCUMENTS.items() if name in (*names, FAILURE))


def problems(document: Any, verb: str) -> list[str]:
    """What in a document the schema of a verb does not allow."""
    found = of_verb(verb)
    if found.is_valid(document):
        return []
    return [f"{verb}: {one.instance_path} {str(one)[:2000]}" for one in found.iter_errors(document)]


@contextmanager
def held() -> Iterator[None]:
    """While it lasts, a document that does not conform is an error."""

    def wrapped(made: Any, name: str = "") -> Any:
        def checked(*words: Any, **named: Any) -> Any:
            document = made(*words, **named)
            _conforms(document, verb_of(name or words[0].verb))
            return document

        return checked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Result, "to_json", wrapped(Result.to_json))
        for module, name in ((check_several, "check_several"), (failure, FAILURE)):
            patch.setattr(module, "render", wrapped(module.render, name))
        yield


def check_printed(words: Sequence[Any], out: bytes) -> None:
    """Hold what a verb has printed with ``--json`` against the schema of the verb."""
    texts = [str(word) for word in words]
    verb = next((one for one in (" ".join(texts[:2]), *texts[:1]) if one in DOCUMENTS), None)
    if verb is None or "--json" not in texts[: texts.index("--") if "--" in texts else None]:
        return
    try:
        documents = [json.loads(out)]
    except ValueError:  # a document a line, or none
        documents = [json.loads(line) for line in out.splitlines() if line.startswith(b'{"')]
    for document in documents:
        _conforms(document, verb)


def _conforms(document: Any, verb: str) -> None:
    found = problems(document, verb)
    assert not found, "\n".join(found)


def loose(name: str) -> dict[str, str]:
    """Places of a document's schema by path where anything may stand, or nothing need."""
    whole = document_schema(name)
    found: dict[str, str] = {}
    places = [("", whole), *whole.get("$defs", {}).items()]
    while places:
        path, one = places.pop()
        places += [(f"{path}", part) for part in one.get("anyOf", ())]
        kinds = one.get("type", ())
        kinds = [kinds] if isinstance(kinds, str) else kinds
        inner = one.get("properties", {})
        places += [(f"{path}.{key}", value) for key, value in inner.items()]
        others = one.get("additionalProperties")
        if isinstance(others, dict):
            places.append((f"{path}.*", others))
        elif "object" in kinds and (others is True or not inner):
            found[path] = "any object"
        if missing := sorted(inner.keys() - set(one.get("required", ()))):
            found[path] = ",".join(missing)
        if "items" in one:
            places.append((f"{path}[]", one["items"]))
        elif "array" in kinds and "maxItems" not in one:
            found[path] = "any list"
        if not {"type", "anyOf", "$ref", "enum"} & one.keys():
            found[path] = "anything"
    return found


def reduced(value: Any) -> Any:
    """The same with one of what is alike: one member of a list of each form."""
    if isinstance(value, dict):
        return {name: reduced(one) for name, one in value.items()}
    if isinstance(value, list):
        forms = {json.dumps(form(one), sort_keys=True): one for one in reversed(value)}
        return [reduced(one) for one in forms.values()]
    return value


def form(value: Any) -> Any:
    """Types in place of values."""
    if isinstance(value, dict):
        return {name: form(one) for name, one in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(form(one), sort_keys=True) for one in value})
    return "0x" if _is_hex(value) else type(value).__name__


def _is_hex(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("0x", "-0x"))


def _wrong(value: Any) -> Iterator[tuple[str, Any]]:
    # Values that cannot stand where this one does.
    if value is None:
        yield "type", {"not": "null"}
    elif isinstance(value, (bool, str, dict, list)):
        yield "type", 4711
        if _is_hex(value):
            yield "form", "0x?"
    else:
        yield "type", "4711"
        yield "form", value + 0.25


def _required(shape: Shape) -> set[str]:
    objects = [one for one in shape._parts if "object" in one.get("type", ())]
    return (
        set.intersection(*(set(one.get("required", ())) for one in objects)) if objects else set()
    )


def _changes(
    value: Any, shape: Shape | None, above: str
) -> Iterator[tuple[str, str, Any, Any, Any]]:
    # What is changed, its path, then the object or list, the key and the new value.
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in list(pairs):
        path = f"{above}.{key}" if isinstance(value, dict) else f"{above}[]"
        if isinstance(value, dict):
            inner = shape and shape.inside(key)
            if shape is None or key in _required(shape):
                yield "member", path, value, key, ...
        else:
            inner = shape and shape.items()
        for kind, new in _wrong(one):
            yield kind, path, value, key, new
        if isinstance(one, (dict, list)):
            yield from _changes(one, inner, path)


class Count:
    """What a schema notices of what is changed in documents, and what it misses."""

    def __init__(self) -> None:
        self.tried: Counter[str] = Counter()
        self.missed: Counter[tuple[str, str]] = Counter()

    def change(self, document: dict[str, Any], verb: str, shape: Shape) -> None:
        """Change each leaf and leave out each member, one at a time."""
        found, small = of_verb(verb), reduced(document)
        assert found.is_valid(small)
        for kind, path, holder, key, new in _changes(small, shape, ""):
            old = dict(holder) if isinstance(holder, dict) else list(holder)
            if new is ...:
                del holder[key]
            else:
                holder[key] = new
            self.tried[kind] += 1
            self.missed[kind, path] += found.is_valid(small)
            holder.clear()
            holder.update(old) if isinstance(holder, dict) else holder.extend(old)

    def noticed(self) -> float:
        """The part that was noticed."""
        tried = sum(self.tried.values())
        return (tried - sum(self.missed.values())) / tried
