"""Write the JSON Schemas of all documents, from the functions that make the documents.

    tools/schemas.py            write qemu_svm/render/schemas/*.json
    tools/schemas.py --check    fail if they are not what the functions make now

mypy tells the type of every expression in ``qemu_svm/render/json``; the keys, what is nested
and what is optional are in the dict displays of those functions.  So nothing of a schema is
written by hand, and what a function adds is in the schema after the next run.
"""

from __future__ import annotations

import enum
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from mypy import build, nodes, types
from mypy.modulefinder import BuildSource
from mypy.options import Options

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "qemu_svm/render/schemas"
PACKAGE = "qemu_svm.render.json"
Schema = dict[str, Any]

HEX: Schema = {"type": "string", "pattern": "^-?0x[0-9a-f]+$"}
SIMPLE: dict[str, Schema] = {
    "builtins.str": {"type": "string"},
    "builtins.int": {"type": "integer"},
    "builtins.float": {"type": "number"},
    "builtins.bool": {"type": "boolean"},
}
KNOWN: dict[str, Schema] = {"builtins.hex": HEX, f"{PACKAGE}.base.hex_text": HEX}
SEQUENCES = ("builtins.list", "builtins.tuple", "typing.Sequence", "typing.Iterable",
             "typing.Iterator", "builtins.frozenset", "builtins.set")  # fmt: skip


def union(members: list[Schema]) -> Schema:
    """Return what allows any of the members."""
    flat: list[Schema] = []
    for one in members:
        for member in one["anyOf"] if set(one) == {"anyOf"} else [one]:
            if not member:
                return {}
            if member not in flat:
                flat.append(member)
    if len(flat) == 1:
        return flat[0]
    if all(set(one) == {"type"} for one in flat):
        listed = (one["type"] for one in flat)
        kinds = [kind for one in listed for kind in (one if isinstance(one, list) else [one])]
        return {"type": list(dict.fromkeys(kinds))}
    return {"anyOf": flat}


def optional(schema: Schema) -> Schema:
    """Return an object of which no member is required."""
    return {key: value for key, value in schema.items() if key != "required"}


def merged(one: Schema, two: Schema) -> Schema:
    """Return an object with the members of both."""
    result: Schema = {"type": "object"}
    properties = {**one.get("properties", {}), **two.get("properties", {})}
    if properties:
        result["properties"] = properties
    if required := sorted({*one.get("required", ()), *two.get("required", ())}):
        result["required"] = required
    for side in (one, two):
        if "properties" not in side or "additionalProperties" in side:
            result["additionalProperties"] = side.get("additionalProperties", True)
    return result


class Reader:
    """What mypy knows of the package, as schemas."""

    def __init__(self, result: build.BuildResult) -> None:
        self.files = result.files
        self.types = result.types
        self.definitions: dict[str, Schema] = {}

    def document(self, module: str) -> Schema:
        """Return the schema of what ``render`` of a module returns, with what it refers to."""
        self.definitions = {}
        found = self.function(f"{PACKAGE}.{module}.render")
        while set(found) == {"$ref"}:
            found = self.definitions.pop(found["$ref"].rpartition("/")[2])
        if self.definitions:
            found = {**found, "$defs": dict(sorted(self.definitions.items()))}
        return found

    def function(self, name: str) -> Schema:
        module, _, last = name.rpartition(".")
        short = f"{module.rpartition('.')[2]}.{last.strip('_')}"
        if short not in self.definitions:
            self.definitions[short] = {}  # while it is made: it may refer to itself
            node = self.files[module].names[last].node
            assert isinstance(node, nodes.FuncDef), name
            self.definitions[short] = Body(self, node).returned()
        return {"$ref": f"#/$defs/{short}"}

    def type(self, found: types.Type | None) -> Schema:  # noqa: PLR0911 - one for each kind
        if found is None:
            return {}
        found = types.get_proper_type(found)
        if isinstance(found, types.NoneType):
            return {"type": "null"}
        if isinstance(found, types.UnionType):
            return union([self.type(one) for one in found.items])
        if isinstance(found, types.LiteralType):
            return {"enum": [found.value]} if not found.is_enum_literal() else {}
        if isinstance(found, types.TupleType):
            items = union([self.type(one) for one in found.items]) if found.items else {}
            return {"type": "array", **({"items": items} if items else {})}
        if isinstance(found, types.Instance):
            return self.instance(found)
        return {}

    def instance(self, found: types.Instance) -> Schema:
        name = found.type.fullname
        for one in found.type.mro:
            if one.fullname in SIMPLE:
                return SIMPLE[one.fullname]
        if name == "builtins.dict" or found.type.has_base("typing.Mapping"):
            value = self.type(found.args[-1]) if found.args else {}
            if name == "collections.Counter":
                value = SIMPLE["builtins.int"]
            return {"type": "object", **({"additionalProperties": value} if value else {})}
        if any(found.type.has_base(one) for one in SEQUENCES):
            items = self.type(found.args[0]) if found.args else {}
            return {"type": "array", **({"items": items} if items else {})}
        return {}

    def dataclass(self, found: types.Type | None) -> Schema:
        """Return what ``asdict`` makes."""
        proper = types.get_proper_type(found) if found else None
        if isinstance(proper, types.UnionType):
            return union([self.dataclass(one) for one in proper.items])
        if not isinstance(proper, types.Instance) or "dataclass" not in proper.type.metadata:
            return self.type(proper)
        properties = {}
        for one in proper.type.metadata["dataclass"]["attributes"]:
            symbol = proper.type.get(one["name"])
            properties[one["name"]] = self.dataclass(symbol.type if symbol else None)
        return {"type": "object", "properties": properties, "required": sorted(properties)}


class Body:
    """A function: what its locals are, and what it returns."""

    def __init__(self, reader: Reader, function: nodes.FuncDef) -> None:
        self.reader = reader
        self.function = function
        self.locals: dict[str, nodes.Expression] = {}
        self.added: dict[str, list[tuple[str, nodes.Expression]]] = {}
        self.returns: list[nodes.Expression] = []
        self.appended: dict[str, list[nodes.Expression]] = {}
        self.walk(function.body)

    def walk(self, block: nodes.Block | None) -> None:
        for one in block.body if block else ():
            if isinstance(one, nodes.ReturnStmt) and one.expr is not None:
                self.returns.append(one.expr)
            elif isinstance(one, nodes.AssignmentStmt):
                self.assignment(one)
            elif isinstance(one, nodes.ExpressionStmt):
                self.append(one.expr)
            elif isinstance(one, nodes.IfStmt):
                for part in (*one.body, one.else_body):
                    self.walk(part)
            elif isinstance(one, (nodes.ForStmt, nodes.WithStmt, nodes.WhileStmt)):
                self.walk(one.body)
            elif isinstance(one, nodes.TryStmt):
                for part in (one.body, *one.handlers, one.else_body):
                    self.walk(part)

    def assignment(self, one: nodes.AssignmentStmt) -> None:
        for target in one.lvalues:
            if isinstance(target, nodes.NameExpr):
                self.locals.setdefault(target.name, one.rvalue)
            elif (isinstance(target, nodes.IndexExpr) and isinstance(target.base, nodes.NameExpr)
                  and isinstance(target.index, nodes.StrExpr)):  # fmt: skip
                self.added.setdefault(target.base.name, []).append((target.index.value, one.rvalue))

    def append(self, one: nodes.Expression) -> None:
        callee = one.callee if isinstance(one, nodes.CallExpr) else None
        if not isinstance(callee, nodes.MemberExpr) or callee.name != "append":
            return
        if isinstance(one, nodes.CallExpr) and isinstance(callee.expr, nodes.NameExpr):
            self.appended.setdefault(callee.expr.name, []).append(one.args[0])

    def returned(self) -> Schema:
        return union([self.of(one) for one in self.returns])

    def of(self, one: nodes.Expression) -> Schema:  # noqa: PLR0911 - one for each kind
        if isinstance(one, nodes.DictExpr):
            return self.display(one)
        if isinstance(one, nodes.DictionaryComprehension):
            value = self.of(one.value)
            return {"type": "object", **({"additionalProperties": value} if value else {})}
        if isinstance(one, nodes.ListComprehension):
            return self.array(self.of(one.generator.left_expr))
        if isinstance(one, nodes.ListExpr) and one.items:
            return self.array(union([self.of(item) for item in one.items]))
        if isinstance(one, nodes.ConditionalExpr):
            return union([self.of(one.if_expr), self.of(one.else_expr)])
        if isinstance(one, nodes.CallExpr):
            return self.call(one)
        if isinstance(one, nodes.OpExpr) and one.op == "|":
            return merged(self.flat(self.of(one.left)), self.flat(self.of(one.right)))
        if isinstance(one, nodes.MemberExpr) and one.name == "value":
            return self.enumerated(one)
        if isinstance(one, nodes.NameExpr) and one.name in self.locals:
            return self.local(one)
        return self.reader.type(self.reader.types.get(one))

    @staticmethod
    def array(items: Schema) -> Schema:
        return {"type": "array", **({"items": items} if items else {})}

    def flat(self, found: Schema) -> Schema:
        while set(found) == {"$ref"}:
            found = self.reader.definitions[found["$ref"].rpartition("/")[2]]
        return found

    def display(self, one: nodes.DictExpr) -> Schema:
        result: Schema = {"type": "object", "properties": {}, "required": []}
        for key, value in one.items:
            if key is None:
                found = self.flat(self.of(value))
                if "anyOf" in found:
                    parts = [optional(self.flat(part)) for part in found["anyOf"]]
                    for part in parts:
                        if part.get("properties") or part.get("additionalProperties"):
                            result = merged(result, part)
                else:
                    result = merged(result, found)
            elif isinstance(key, nodes.StrExpr):
                made = {"properties": {key.value: self.of(value)}, "required": [key.value]}
                result = merged(result, made)
            else:
                made = {"type": "object", "additionalProperties": self.of(value)}
                result = merged(result, made)
        if not result.get("properties"):
            result.pop("properties", None)
        if not result.get("required"):
            result.pop("required", None)
        return result

    def call(self, one: nodes.CallExpr) -> Schema:  # noqa: PLR0911 - one for each kind
        callee = one.callee
        name = getattr(callee, "fullname", "")
        if name in KNOWN:
            return KNOWN[name]
        if name == f"{PACKAGE}.base.optional_hex":
            return union([HEX, {"type": "null"}])
        if name == "dataclasses.asdict":
            return self.reader.dataclass(self.reader.types.get(one.args[0]))
        if name in ("builtins.list", "builtins.sorted", "builtins.dict") and one.args:
            if isinstance(one.args[0], nodes.GeneratorExpr):
                return self.array(self.of(one.args[0].left_expr))
            # The type of the call is that of the place it stands in: list[Any].
            return self.copied(name, self.reader.types.get(one.args[0]))
        node = callee.node if isinstance(callee, nodes.RefExpr) else None
        found = self.reader.type(self.reader.types.get(one))
        vague = not found or found == {"type": "object"} or "object" in str(found)
        if (isinstance(node, nodes.FuncDef) and node.fullname.startswith("qemu_svm.render.")
                and vague):  # fmt: skip
            return self.reader.function(node.fullname)
        return found

    def copied(self, name: str, source: types.Type | None) -> Schema:
        found = self.reader.type(source)
        if name == "builtins.dict":
            return found if found.get("type") == "object" else {"type": "object"}
        if found.get("type") == "object":
            return self.array({"type": "string"})  # the keys
        return self.array(found.get("items", {}))

    def enumerated(self, one: nodes.MemberExpr) -> Schema:
        base = types.get_proper_type(self.reader.types.get(one.expr, types.NoneType()))
        if isinstance(base, types.Instance) and base.type.is_enum:
            module, _, name = base.type.fullname.rpartition(".")
            kind: type[enum.Enum] = getattr(import_module(module), name)
            return {"enum": [member.value for member in kind]}
        return self.reader.type(self.reader.types.get(one))

    def local(self, one: nodes.NameExpr) -> Schema:
        if one.name in self.appended:
            return self.array(union([self.of(item) for item in self.appended[one.name]]))
        found = self.of(self.locals[one.name])
        added = self.added.get(one.name, ())
        if found.get("type") == "array" and "items" in found:
            return found
        if not found or (found.get("type") != "object" and not added):
            # mypy knows what is left of it here.
            return self.reader.type(self.reader.types.get(one)) if "$ref" not in found else found
        for key, value in added:
            found = merged(self.flat(found), {"properties": {key: self.of(value)}})
        return found


def schemas() -> dict[str, str]:
    """Return the text of every schema by the name of its document."""
    options = Options()
    options.export_types = True
    options.preserve_asts = True
    options.incremental = False
    options.python_version = (3, 11)
    options.ignore_missing_imports = True
    modules = sorted(
        path.stem for path in (ROOT / "qemu_svm/render/json").glob("*.py")
        if "def render(" in path.read_text()
    )  # fmt: skip
    sources = [BuildSource(str(ROOT / f"qemu_svm/render/json/{one}.py"), f"{PACKAGE}.{one}")
               for one in modules]  # fmt: skip
    reader = Reader(build.build(sources, options))
    return {
        name: json.dumps({"title": name, **reader.document(name)}, indent=1) + "\n"
        for name in modules
    }


def main() -> int:
    made = schemas()
    old = {path.stem: path.read_text() for path in TARGET.glob("*.json")}
    if made == old:
        return 0
    changed = sorted(name for name in made.keys() | old.keys() if made.get(name) != old.get(name))
    if "--check" in sys.argv:
        print("not what the functions make:", *changed, "(run tools/schemas.py)", file=sys.stderr)
        return 1
    TARGET.mkdir(exist_ok=True)
    for name in changed:
        path = TARGET / f"{name}.json"
        if name in made:
            path.write_text(made[name])
        else:
            path.unlink()
    print("written:", *changed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
