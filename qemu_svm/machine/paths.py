"""Paths: names for everything in a stream, also for the value at an offset.

==========================  =================================================
``header``                  magic and version
``configuration``           machine type and capabilities
``vcpu0``                   a vCPU: ``registers``, ``segments``, ``nested``
``vcpu0.cr3``               short for ``vcpu0.registers.cr3``
``vcpu0.nested.control``    control area of L1's VMCB for L2
``vcpu0.nested.l1_save``    L1's own state
``vcpu0.parts.SREGS``       a structure of KVM's ioctls, in an input that is no stream
``section:apic``            a device section, as its description names it
``section:dma[1].dma``      instance 1 of ``dma``, field ``dma``
``section:dirty-bitmap``    all parts of a section that is written in parts
``section:ram``             the list of RAM blocks
``@0x98d7c``                the value at that offset of the stream
==========================  =================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qemu_svm.errors import PathError, StreamError
from qemu_svm.machine.model import Machine
from qemu_svm.machine.sections import section_values
from qemu_svm.machine.vcpu import Vcpu
from qemu_svm.stream import Kind, Record, Value
from qemu_svm.stream.commands import command_values
from qemu_svm.stream.vmstate.values import join

IN_PARTS = "section in parts"
"""Type of the value for a section that is written in parts."""

_SECTION = "section:"
_NEAR = 6
_NAMED = (Kind.FULL, Kind.START)
_PIECES = (Kind.START, Kind.PART, Kind.END)


@dataclass(frozen=True, slots=True)
class Node:
    """A value with the path that leads to it, in its full, canonical form."""

    path: str
    value: Value

    @property
    def scattered(self) -> bool:
        """Whether its bytes are in several places of the stream."""
        return self.value.type == IN_PARTS


def find(machine: Machine, path: str) -> Node:
    """Return the value at a path.

    :raises PathError: there is none; ``near`` lists similar paths.
    :raises StreamError: the section that holds it cannot be decoded.
    """
    if path.startswith("@"):
        return _at(machine, path)
    if path.startswith(_SECTION):
        place = _in_section(machine, path.removeprefix(_SECTION))
    else:
        place = _in_machine(machine, path)
    if place is None:
        raise PathError(f"unknown path '{path}'", near=_near(machine, path))
    return place


def below(machine: Machine, start: str) -> list[str]:
    """Return the paths that begin with ``start``, up to one step beyond its last dot."""
    stem = start[: start.rfind(".") + 1]
    if not stem:
        labels = (section_label(machine, r) for r in machine.stream.records if r.kind in _NAMED)
        found = [root.name for root in _roots(machine)]
        found += dict.fromkeys(_SECTION + label for label in labels)
    else:
        try:
            value = find(machine, stem[:-1]).value
        except (PathError, StreamError):
            return []
        found = [join(stem[:-1], child.name) for child in value.children]
    return [name for name in found if name.startswith(start)]


def needs_all_records(machine: Machine, path: str) -> bool:
    """Whether ``path`` may lead into records that a quick walk skipped.

    These are sections in parts, whose parts are between those of RAM; and offsets.
    """
    gaps = [record for record in machine.stream.records if record.kind is Kind.SKIPPED]
    if all(record.count for record in gaps):
        return False
    name = path.removeprefix(_SECTION)
    return path.startswith("@") or (
        name != path
        and any(_in_pieces(r) and name.startswith(r.name or "") for r in machine.stream.records)
    )


def vcpu_tree(vcpu: Vcpu) -> Value:
    """A vCPU as one tree: ``registers``, ``segments``, ``nested``.

    Offsets are those in the stream; the node itself spans the whole section.
    """
    section = vcpu.section
    registers = tuple(
        Value(name, v.type, v.offset, v.size, v.value) for name, v in vcpu.registers.items()
    )
    segments = tuple(
        Value(name, "segment", v.offset, v.size, None, v.children)
        for name, v in vcpu.segment_values.items()
    )
    children = [_group("registers", registers), _group("segments", segments)]
    if vcpu.nested is not None:
        children.append(vcpu.nested.tree())
    if vcpu.parts is not None:
        children.append(section._replace(name="parts"))
    name = f"vcpu{vcpu.index}"
    return Value(name, "vcpu", section.offset, section.size, None, tuple(children))


def _group(name: str, members: tuple[Value, ...]) -> Value:
    start = min((m.offset for m in members), default=0)
    end = max((m.end for m in members), default=0)
    return Value(name, "group", start, end - start, None, members)


def _roots(machine: Machine) -> Iterator[Value]:
    configuration, record = configuration_values(machine), _configuration_record(machine)
    if configuration and record is not None:
        # Without the members that have no place of their own.
        children = (configuration["machine"],)
        yield Value("configuration", "struct", record.offset, record.size, None, children)
    if machine.form is None:
        version = Value("version", "u32", 4, 4, machine.stream.version)
        magic = Value("magic", "u8[4]", 0, 4, b"QEVM")
        yield Value("header", "struct", 0, 8, None, (magic, version))
    yield from (vcpu_tree(vcpu) for vcpu in machine.vcpus)


def configuration_values(machine: Machine) -> dict[str, Value]:
    """Return the members of the CONFIGURATION record by name; empty if there is none.

    The machine type has its own place in the stream, the others have the record's.
    """
    configuration, record = machine.stream.configuration, _configuration_record(machine)
    if configuration is None or record is None:
        return {}
    at, size = record.offset, record.size
    name = configuration.machine
    found = {"machine": Value("machine", "string", at + 5, len(name), name)}
    if configuration.page_bits is not None:
        found["page_bits"] = Value("page_bits", "u32", at, size, configuration.page_bits)
    if configuration.uuid is not None:
        found["uuid"] = Value("uuid", "string", at, size, configuration.uuid.hex())
    for name in configuration.capabilities:
        found[f"capability {name}"] = Value(name, "capability", at, size)
    return found


def _configuration_record(machine: Machine) -> Record | None:
    records = machine.stream.records
    return next((record for record in records if record.kind is Kind.CONFIGURATION), None)


def _in_machine(machine: Machine, path: str) -> Node | None:
    for root in _roots(machine):
        rest = path.removeprefix(root.name)
        if not path.startswith(root.name) or (rest and rest[0] != "."):
            continue
        rest = rest.removeprefix(".")
        for shortcut in ("", "registers.", "segments."):
            found = root.resolve(shortcut + rest) if rest else root
            if found is not None:
                return Node(join(root.name, shortcut + rest).rstrip("."), found)
    return None


def _in_section(machine: Machine, path: str) -> Node | None:
    # Names hold colons, slashes and dots, so the longest one that fits wins.
    named = [
        (section_label(machine, record), record)
        for record in machine.stream.records
        if record.kind in _NAMED
    ]
    named.sort(key=lambda item: len(item[0]), reverse=True)
    parts = _parts(machine)
    tried: set[tuple[str, int | None]] = set()
    for label, record in named:
        rest = path.removeprefix(label)
        if not path.startswith(label) or (rest and rest[0] not in ".["):
            continue
        if record.kind is Kind.START:
            # A section that starts again leads to the same parts.
            if (label, record.section_id) in tried:
                continue
            tried.add((label, record.section_id))
        found = _root(machine, record, parts).resolve(rest.removeprefix("."))
        if found is not None:
            return Node(_SECTION + path, found)
    return None


def _parts(machine: Machine) -> dict[int | None, list[Record]]:
    # START, PARTs and END of each section that has them, by its id.
    found: dict[int | None, list[Record]] = {}
    for record in machine.stream.records:
        if record.kind in _PIECES:
            found.setdefault(record.section_id, []).append(record)
    return found


def _root(machine: Machine, record: Record, parts: dict[int | None, list[Record]]) -> Value:
    # What ``section:NAME`` leads to.
    if record.kind is Kind.FULL:
        return _section_values(machine, record)
    if record.name == "ram":
        return _blocks(machine, record)
    return _pieces(machine, parts[record.section_id])


def _in_pieces(record: Record) -> bool:
    return record.kind is Kind.START and record.name != "ram"


def _pieces(machine: Machine, records: Sequence[Record]) -> Value:
    # START, the PARTs and END of one section, each with what is in it.
    parts: list[Value] = []
    for record in records:
        value = _section_values(machine, record)
        parts.append(value._replace(name=f"[{len(parts)}]", type=record.kind.value))
    start, end, name = parts[0].offset, parts[-1].end, records[0].name or ""
    return Value(name, IN_PARTS, start, end - start, None, tuple(parts))


def _blocks(machine: Machine, record: Record) -> Value:
    # Each RAM block at its entry of the list: the length of its name, the name, its size.
    blocks = tuple(
        Value(block.name, "RAM block", block.offset, 9 + len(block.name), block.used_length)
        for block in machine.blocks
    )
    return Value("ram", "RAM blocks", record.payload, record.payload_size, None, blocks)


def section_label(machine: Machine, record: Record) -> str:
    """``name``, or ``name[instance]`` where several sections share the name."""
    shared = record.name in machine.stream.shared_names
    return f"{record.name}[{record.instance_id}]" if shared else f"{record.name}"


def _section_values(machine: Machine, record: Record) -> Value:
    value = section_values(machine, record)
    if value is not None:
        return value
    # Nothing describes it: its bytes are what there is.
    data = machine.stream.source.read_at(record.payload, record.payload_size)
    return Value(record.name or "", "opaque", record.payload, record.payload_size, data)


def _at(machine: Machine, path: str) -> Node:
    try:
        offset = int(path[1:], 0)
    except ValueError:
        offset = -1
    if offset < 0:
        raise PathError(f"'{path}' is not an offset such as @0x98d7c")
    for record in machine.stream.records:
        if record.offset <= offset < record.end:
            return _inside(machine, record, offset)
    if offset < 8 and machine.form is None:
        return _deepest(
            Node("header", next(r for r in _roots(machine) if r.name == "header")), offset
        )
    raise PathError(f"offset {offset:#x} is outside the stream")


def _inside(machine: Machine, record: Record, offset: int) -> Node:
    inside = record.payload <= offset < record.payload + record.payload_size
    if record.kind is Kind.STATE:
        return _in_state(machine, record, offset)
    if (record.kind is Kind.FULL or (record.kind in _PIECES and record.name != "ram")) and inside:
        if record.name == "cpu":
            for vcpu in machine.vcpus:
                nested = vcpu.nested
                if vcpu.index == record.instance_id and nested is not None:
                    tree = nested.tree()
                    if tree.offset <= offset < tree.end and _covers(tree, offset):
                        return _deepest(Node(f"vcpu{vcpu.index}.nested", tree), offset)
        root, label = _section_values(machine, record), _SECTION + section_label(machine, record)
        if record.kind is not Kind.FULL:
            root = _pieces(machine, _parts(machine)[record.section_id])
        return _deepest(Node(label, root), offset)
    if record.kind is Kind.COMMAND and inside:
        payload = machine.stream.source.read_at(record.payload, record.payload_size)
        value = command_values(record.name or "", payload, record.payload)
        return _deepest(Node(f"command {record.name}", value), offset)
    name = record.name or record.kind.value
    part = "payload" if inside else "framing"
    value = Value(name, f"{record.kind.value} record, {part}", record.offset, record.size)
    return Node(f"{record.kind.value} {name}", value)


def _in_state(machine: Machine, record: Record, offset: int) -> Node:
    for vcpu in machine.vcpus:
        if vcpu.index == record.instance_id:
            tree = vcpu_tree(vcpu)
            nested = tree.child("nested")
            if record.name == "NESTED_STATE" and nested is not None and _covers(nested, offset):
                return _deepest(Node(f"{tree.name}.nested", nested), offset)
            found = tree.resolve(f"parts.{record.name}")
            if found is not None:
                return _deepest(Node(f"{tree.name}.parts.{record.name}", found), offset)
    value = Value(record.name or "", "state", record.offset, record.size)
    return Node(f"{record.kind.value} {record.name}", value)


def _covers(value: Value, offset: int) -> bool:
    return any(child.offset <= offset < child.end for child in value.children)


def _deepest(place: Node, offset: int) -> Node:
    for child in place.value.children:
        if child.offset <= offset < child.end:
            return _deepest(Node(join(place.path, child.name), child), offset)
    return place


def _near(machine: Machine, path: str) -> list[str]:
    candidates: list[str] = []
    if path.startswith(_SECTION):
        labels = {section_label(machine, r): r for r in machine.stream.records if r.kind in _NAMED}
        inside = [label for label in labels if path[len(_SECTION) :].startswith(label)]
        parts = _parts(machine)
        for label in inside:
            value = _root(machine, labels[label], parts)
            candidates += [_SECTION + join(label, name) for name, _ in value.walk()]
        candidates = candidates or [_SECTION + label for label in labels]
    else:
        for root in _roots(machine):
            candidates.append(root.name)
            candidates += [f"{root.name}.{name}" for name, _ in root.walk()]
            if path.startswith(root.name):
                candidates += [
                    f"{root.name}.{v.name}" for child in root.children for v in child.children
                ]
        candidates += [
            _SECTION + section_label(machine, r) for r in machine.stream.records if r.kind in _NAMED
        ]
    from difflib import get_close_matches

    near = get_close_matches(path, candidates[:20_000], n=_NEAR, cutoff=0.5)
    return near or candidates[:_NEAR]
