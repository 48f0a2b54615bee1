"""Write the JSON Schemas of all documents, from the functions that make the documents.

    tools/schemas.py            write qemu_svm/render/schemas/*.json
    tools/schemas.py --check    fail if they are not what the functions make now

mypy tells the type of every expression in ``qemu_svm/render/json``; the keys, what is nested
and what is optional are in the dict displays of those functions.  A comprehension over a table
of a module has the keys of that table.  What a VMCB has is in its layout.  So nothing of a schema
is written by hand, and what a function adds is in the schema after the next run.
"""

from __future__ import annotations

import ast
import builtins
import enum
import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from mypy import build, nodes, types
from mypy.modulefinder import BuildSource
from mypy.options import Options

from qemu_svm.nested import layout, vmcb_fields
from qemu_svm.nested.image import Image

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "qemu_svm/render/schemas"
PACKAGE = "qemu_svm.render.json"
Schema = dict[str, Any]

HEX: Schema = {"type": "string", "pattern": "^-?0x[0-9a-f]+$"}
DIGITS: Schema = {"type": "string", "pattern": "^([0-9a-f]{2})*$"}
WORD: Schema = {"type": "string", "pattern": "^([^0-9-]|$)"}
NULL: Schema = {"type": "null"}
SIMPLE: dict[str, Schema] = {
    "builtins.str": {"type": "string"},
    "builtins.int": {"type": "integer"},
    "builtins.float": {"type": "number"},
    "builtins.bool": {"type": "boolean"},
}
KNOWN: dict[str, Schema] = {
    f"{PACKAGE}.base.Hex": HEX,
    f"{PACKAGE}.base.Digits": DIGITS,
    f"{PACKAGE}.base.TextType": {"type": "string", "pattern": r"^(?!u?(int)?[0-9]+$)"},
    f"{PACKAGE}.diff.VersionPath": {"type": "string", "pattern": "version$"},
}
"""Kinds of text, by the type that says so."""
STORED = {"qemu_svm.survey.row.Survey.rows": "qemu_svm.survey.row.Row.to_json"}
"""What yields documents that another function made."""
OBSERVED = f"{PACKAGE}.observed.observed"
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
    if any(one.get("type") == "array" and "items" in one for one in flat):
        flat = [one for one in flat if one != EMPTY]
    if len(flat) == 1:
        return flat[0]
    if all(set(one) == {"type"} for one in flat):
        listed = (one["type"] for one in flat)
        kinds = [kind for one in listed for kind in (one if isinstance(one, list) else [one])]
        return {"type": list(dict.fromkeys(kinds))}
    return {"anyOf": flat}


EMPTY: Schema = {"type": "array", "maxItems": 0}


def vague(schema: Schema) -> bool:
    """Whether anything, any object or any list is allowed somewhere in it."""
    if "anyOf" in schema:
        return any(vague(one) for one in schema["anyOf"])
    if schema.get("type") == "object":
        inner = [*schema.get("properties", {}).values()]
        free = schema.get("additionalProperties", not inner)
        return free is True or any(map(vague, [*inner, free] if free else inner))
    if schema.get("type") == "array":
        return schema != EMPTY and vague(schema.get("items", {}))
    if isinstance(kinds := schema.get("type"), list):
        return not {"object", "array"}.isdisjoint(kinds)
    return not schema


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
        if side and ("properties" not in side or "additionalProperties" in side):
            result["additionalProperties"] = side.get("additionalProperties", True)
    return result


def of_value(value: Any) -> Schema:
    """Return the schema of a document that was made from zeros."""
    if isinstance(value, Mapping):
        return {
            "type": "object",
            "properties": {name: of_value(one) for name, one in value.items()},
            "required": sorted(value),
        }
    if isinstance(value, list):
        return {"type": "array", "items": union([of_value(one) for one in value])}
    if isinstance(value, str):
        return HEX if value.startswith("0x") else DIGITS
    return {bool: {"type": "boolean"}, int: {"type": "integer"}}[type(value)]


def vmcb_area(image: Image) -> Schema:
    """Return what ``inspect`` shows of an area of the VMCB; types do not depend on values."""
    render = import_module(f"{PACKAGE}.inspect")
    control, save = vmcb_fields(bytes(layout.VMCB_SIZE))
    values = control if image is layout.CONTROL else save
    found = of_value(render._area(image, values, 0))  # noqa: SLF001
    found["properties"]["reserved"] = {"type": "object", "additionalProperties": DIGITS}
    return found


FROM_LAYOUT: dict[str, Callable[[Any], Schema]] = {f"{PACKAGE}.inspect._area": vmcb_area}
"""Functions whose document follows a layout: their first argument."""


@cache
def comprehensions(module: str) -> Mapping[tuple[int, int], ast.DictComp]:
    """Return those of a module by line and column."""
    path = import_module(module).__file__
    assert path is not None
    tree = ast.parse(Path(path).read_text())
    return {
        (one.lineno, one.col_offset): one for one in ast.walk(tree) if isinstance(one, ast.DictComp)
    }


def observed_value(*, count: bool) -> Schema:
    """Return what ``observed`` makes: numbers that count, or all else."""
    if count:
        return {"type": ["integer", "null"]}
    names = (("base", "limit"), ("attrib", "base", "limit", "selector"))
    tables = [
        {"type": "object", "properties": dict.fromkeys(keys, HEX), "required": list(keys),
         "additionalProperties": False}
        for keys in names
    ]  # fmt: skip
    return {"anyOf": [HEX, *tables, WORD, NULL]}


class Reader:
    """What mypy knows of the package, as schemas."""

    def __init__(self, result: build.BuildResult) -> None:
        self.files = result.files
        self.counts = sorted(import_module(f"{PACKAGE}.observed").COUNTS)
        self.types = result.types
        self.definitions: dict[str, Schema] = {}

    def document(self, module: str) -> Schema:
        """Return the schema of what ``render`` of a module returns, with what it refers to."""
        self.definitions = {}
        found = self.function(f"{PACKAGE}.{module}.render")
        while set(found) == {"$ref"}:
            found = self.definitions.pop(found["$ref"].rpartition("/")[2])
        self.definitions = self.used(found)
        if self.definitions:
            found = {**found, "$defs": dict(sorted(self.definitions.items()))}
        return found

    def used(self, found: Schema) -> dict[str, Schema]:
        """Return the definitions that something refers to, from a schema on."""
        result: dict[str, Schema] = {}
        left = [found]
        while left:
            text = json.dumps(left.pop())
            for name, one in self.definitions.items():
                if name not in result and f'"#/$defs/{name}"' in text:
                    result[name] = one
                    left.append(one)
        return result

    def function(self, name: str) -> Schema:
        module, _, last = name.rpartition(".")
        short = f"{module.rpartition('.')[2]}.{last.strip('_')}"
        if short not in self.definitions:
            self.definitions[short] = {}  # while it is made: it may refer to itself
            if module in self.files:
                node = self.files[module].names[last].node
            else:  # a method
                module, _, above = module.rpartition(".")
                holder = self.files[module].names[above].node
                assert isinstance(holder, nodes.TypeInfo), name
                node = holder.names[last].node
            assert isinstance(node, nodes.FuncDef), name
            self.definitions[short] = Body(self, node, module).returned()
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
        if isinstance(found, types.TypedDictType):
            made = {name: self.type(one) for name, one in found.items.items()}
            required = sorted(found.required_keys)
            return {"type": "object", "properties": made, "required": required}
        if isinstance(found, types.Instance):
            return self.instance(found)
        return {}

    def instance(self, found: types.Instance) -> Schema:  # noqa: PLR0911 - one for each kind
        name = found.type.fullname
        if found.last_known_value is not None:
            return self.type(found.last_known_value)
        if found.type.is_enum:
            return enumerated(found)
        for one in found.type.mro:
            if one.fullname in KNOWN:
                return KNOWN[one.fullname]
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


def enumerated(found: types.Instance) -> Schema:
    """Return the values of an enumeration."""
    module, _, name = found.type.fullname.rpartition(".")
    kind: type[enum.Enum] = getattr(import_module(module), name)
    return {"enum": [member.value for member in kind]}


def dotted(one: nodes.Expression) -> str:
    """Return a name with its attributes."""
    if isinstance(one, nodes.MemberExpr):
        return f"{dotted(one.expr)}.{one.name}"
    return one.name if isinstance(one, nodes.NameExpr) else "?"


class Body:
    """A function: what its locals are, and what it returns."""

    def __init__(self, reader: Reader, function: nodes.FuncDef, module: str) -> None:
        self.reader = reader
        self.function = function
        self.module = module
        self.locals: dict[str, list[nodes.Expression]] = {}
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
                self.locals.setdefault(target.name, []).append(one.rvalue)
            elif isinstance(target, nodes.TupleExpr) and isinstance(
                one.rvalue, nodes.GeneratorExpr
            ):
                for name in target.items:
                    if isinstance(name, nodes.NameExpr):
                        self.locals.setdefault(name.name, []).append(one.rvalue.left_expr)
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
            return self.comprehension(one)
        if isinstance(one, nodes.ListComprehension):
            return self.array(self.of(one.generator.left_expr))
        if isinstance(one, nodes.ListExpr) and not one.items:
            return EMPTY
        if isinstance(one, nodes.ListExpr):
            return self.array(union([self.of(item) for item in one.items]))
        if isinstance(one, nodes.ConditionalExpr):
            return union([self.of(one.if_expr), self.of(one.else_expr)])
        if isinstance(one, nodes.CallExpr):
            return self.call(one)
        if isinstance(one, nodes.OpExpr) and one.op == "|":
            return merged(self.flat(self.of(one.left)), self.flat(self.of(one.right)))
        if isinstance(one, nodes.MemberExpr) and one.name == "value":
            return self.value_of(one)
        if isinstance(one, nodes.CastExpr):
            return self.reader.type(one.type)
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

    def comprehension(self, one: nodes.DictionaryComprehension) -> Schema:
        if getattr(getattr(one.value, "callee", None), "fullname", "") == OBSERVED:
            counts = dict.fromkeys(self.reader.counts, observed_value(count=True))
            others = observed_value(count=False)
            return {"type": "object", "properties": counts, "additionalProperties": others}
        value = self.of(one.value)
        keys = self.keys(one)
        if keys is not None:
            made = dict.fromkeys(keys, value)
            return {"type": "object", "properties": made, "required": sorted(keys)}
        return {"type": "object", **({"additionalProperties": value} if value else {})}

    def keys(self, one: nodes.DictionaryComprehension) -> list[str] | None:
        """Return the keys, if they do not depend on what the function is given."""
        found = comprehensions(self.module)[one.line, one.column]
        known = dict(vars(import_module(self.module)))
        targets = {
            part.id
            for generator in found.generators
            for part in ast.walk(generator.target)
            if isinstance(part, ast.Name)
        }
        keyed = ast.ListComp(found.key, found.generators)
        needed = {part.id for part in ast.walk(keyed) if isinstance(part, ast.Name)} - targets
        given = {*self.locals, *(argument.variable.name for argument in self.function.arguments)}
        if needed & given or needed - {*known, *vars(builtins)}:
            return None
        code = compile(ast.fix_missing_locations(ast.Expression(keyed)), self.module, "eval")
        return [str(name) for name in eval(code, known)]  # our own source

    def display(self, one: nodes.DictExpr) -> Schema:
        names = {
            dotted(value): key.value for key, value in one.items if isinstance(key, nodes.StrExpr)
        }
        shown = {
            key.value: value.args[0]
            for key, value in one.items
            if isinstance(key, nodes.StrExpr) and isinstance(value, nodes.CallExpr)
            and getattr(value.callee, "fullname", "") == OBSERVED
        }  # fmt: skip
        result = self.members(one)
        if not shown:
            return result
        # Which values are numbers is said by the name beside them.
        beside = {names.get(dotted(argument)) for argument in shown.values()}
        if None in beside:
            return result
        (name,) = beside
        others: Schema = {"type": "string", "not": {"enum": self.reader.counts}}
        return union([
            merged(result, {"properties": {
                name: {"enum": self.reader.counts} if count else others,
                **dict.fromkeys(shown, observed_value(count=count)),
            }})
            for count in (True, False)
        ])  # fmt: skip

    def members(self, one: nodes.DictExpr) -> Schema:
        shapes: list[Schema] = [{"type": "object", "properties": {}, "required": []}]
        for key, value in one.items:
            shapes = [merged(shape, part) for shape in shapes for part in self.member(key, value)]
        for shape in shapes:
            for name in ("properties", "required"):
                if not shape.get(name):
                    shape.pop(name, None)
        return union(shapes)

    def member(self, key: nodes.Expression | None, value: nodes.Expression) -> list[Schema]:
        """Return what one line of a display adds: one of these."""
        if isinstance(key, nodes.StrExpr):
            return [{"properties": {key.value: self.of(value)}, "required": [key.value]}]
        if key is not None:
            if literals := self.literals(key):
                return [{"properties": dict.fromkeys(literals, self.of(value))}]
            return [{"type": "object", "additionalProperties": self.of(value)}]
        found = self.flat(self.of(value))
        parts = [self.flat(part) for part in found.get("anyOf", [found])]
        some = [one for one in parts if one.get("properties") or one.get("additionalProperties")]
        return some if len(some) == len(parts) else [optional(one) for one in some]

    def literals(self, key: nodes.Expression) -> list[str]:
        """Return the values that a key can have, if its type says so."""
        found = self.reader.type(self.reader.types.get(key))
        return [value for part in found.get("anyOf", [found]) for value in part.get("enum", ())]

    def call(self, one: nodes.CallExpr) -> Schema:  # noqa: PLR0911 - one for each kind
        callee = one.callee
        name = getattr(callee, "fullname", "")
        if name in FROM_LAYOUT:
            place = getattr(one.args[0], "fullname", "")
            module, _, last = place.rpartition(".")
            return FROM_LAYOUT[name](getattr(import_module(module), last))
        if name == OBSERVED:
            return union([observed_value(count=True), observed_value(count=False)])
        if isinstance(callee, nodes.MemberExpr) and callee.name in ("to_json", "rows"):
            owner = types.get_proper_type(self.reader.types.get(callee.expr, types.NoneType()))
            if isinstance(owner, types.Instance):
                method = f"{owner.type.fullname}.{callee.name}"
                if method in STORED:
                    return self.array(self.reader.function(STORED[method]))
                return self.reader.function(method)
        if name == "builtins.sum":
            return {"type": "integer"}
        if name == "dataclasses.asdict":
            return self.reader.dataclass(self.reader.types.get(one.args[0]))
        if name in ("builtins.list", "builtins.sorted", "builtins.dict") and one.args:
            if isinstance(one.args[0], nodes.GeneratorExpr):
                return self.array(self.of(one.args[0].left_expr))
            if isinstance(one.args[0], nodes.CallExpr):
                inner = self.of(one.args[0])
                if inner.get("type") == ("object" if name == "builtins.dict" else "array"):
                    return inner
            # The type of the call is that of the place it stands in: list[Any].
            return self.copied(name, self.reader.types.get(one.args[0]))
        node = callee.node if isinstance(callee, nodes.RefExpr) else None
        found = self.reader.type(self.reader.types.get(one))
        if (isinstance(node, nodes.FuncDef) and node.fullname.startswith("qemu_svm.render.")
                and (vague(found) or "object" in str(found))):  # fmt: skip
            return self.reader.function(node.fullname)
        return found

    def copied(self, name: str, source: types.Type | None) -> Schema:
        found = self.reader.type(source)
        if name == "builtins.dict":
            return found if found.get("type") == "object" else {"type": "object"}
        if found.get("type") == "object":
            return self.array({"type": "string"})  # the keys
        return self.array(found.get("items", {}))

    def value_of(self, one: nodes.MemberExpr) -> Schema:
        base = types.get_proper_type(self.reader.types.get(one.expr, types.NoneType()))
        if isinstance(base, types.Instance) and base.type.is_enum:
            return enumerated(base)
        return self.reader.type(self.reader.types.get(one))

    def local(self, one: nodes.NameExpr) -> Schema:
        if one.name in self.appended:
            return self.array(union([self.of(item) for item in self.appended[one.name]]))
        found = union([self.of(value) for value in self.locals[one.name]])
        added = self.added.get(one.name, ())
        if not added:
            # mypy knows what is left of it here.
            left = self.reader.type(self.reader.types.get(one))
            return found if vague(left) else left
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
