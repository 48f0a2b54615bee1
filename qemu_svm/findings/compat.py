"""Whether a given QEMU would accept the sections of a stream.

QEMU looks up a section by name, refuses versions outside
``minimum_version_id``..``version_id`` of its own description, and then reads
field after field: names are not on the wire, so a field too many or too few,
or one of another width, shifts everything after it.  An unknown subsection
makes it refuse.  Versions of structures inside a section are not on the wire.

Only what is certain is an error: a dump has sizes in memory, not on the wire, so
sizes are compared for plain numbers only; a field of the target that the stream
lacks may be conditional or an array without elements.

Source: QEMU ``migration/vmstate.c`` (``vmstate_load_state``,
``vmstate_subsection_load``), ``migration/savevm.c``
(``qemu_loadvm_section_start_full``, ``configuration_post_load``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qemu_svm.findings.qemu_arrays import ARRAYS
from qemu_svm.machine import Machine
from qemu_svm.machine.paths import section_label
from qemu_svm.rules import Finding, Severity
from qemu_svm.stream import Kind, Record
from qemu_svm.stream.vmstate.description import Field, Fields
from qemu_svm.stream.vmstate.dump import UNLISTED, Dump, DumpField, DumpLayout
from qemu_svm.stream.vmstate.types import SCALARS
from qemu_svm.stream.vmstate.values import join

_IN_MEMORY = frozenset({"int32_as_uint16", "uint16_from_uint8", "nullptr", "ptr-marker", "timer"})
"""Types whose size in memory says nothing about the wire."""


_BYTES = frozenset({"unused_buffer", "buffer"})


@dataclass(frozen=True, slots=True)
class Compatibility:
    """Result of a comparison.

    :param target: machine type that the dump was made for.
    :param compared: labels of the sections that were compared with the dump.
    :param fields: fields compared.
    :param unlisted: labels of the sections that are not in the dump.
    """

    findings: tuple[Finding, ...]
    target: str | None
    compared: tuple[str, ...]
    fields: int
    unlisted: tuple[str, ...]

    @property
    def accepted(self) -> bool:
        """Whether nothing was found that makes QEMU refuse the stream."""
        return not any(one.severity is Severity.ERROR for one in self.findings)


def compatibility(
    machine: Machine, dump: Dump, machines: Sequence[str] | None = None
) -> Compatibility:
    """Compare a stream with a dump.

    :param machines: machine types that the binary has; None if there is only a dump.
    """
    return _Comparer(machine, dump).run(machines)


class _Comparer:
    def __init__(self, machine: Machine, dump: Dump) -> None:
        self._machine = machine
        self._dump = dump
        self._fields = 0
        self._offset = 0

    def run(self, machines: Sequence[str] | None) -> Compatibility:
        found = list(self._machine_type(machines))
        compared, unlisted = [], []
        for record in self._machine.stream.records:
            if record.kind not in (Kind.START, Kind.FULL):
                continue
            label = section_label(self._machine, record)
            device = self._machine.stream.device(record)
            described = None if device is None else device.layout
            layouts = self._layouts(record, described)
            if layouts:
                compared.append(label)
                found += self._best(record, label, layouts, described)
                continue
            unlisted.append(label)
            if device is not None and device.layout.name not in UNLISTED | {""}:
                found.append(self._unknown(record, label, device.layout.name))
        return Compatibility(
            tuple(found), self._dump.machine, tuple(compared), self._fields, tuple(unlisted)
        )

    def _machine_type(self, machines: Sequence[str] | None) -> Iterator[Finding]:
        name = self._machine.name
        if name is None:
            return
        record = next(r for r in self._machine.stream.records if r.kind is Kind.CONFIGURATION)
        if machines is not None and name not in machines:
            near = difflib.get_close_matches(name, machines, n=3)
            yield Finding(
                Severity.ERROR,
                "machine",
                f"this QEMU does not have the machine type '{name}'"
                + (f"; near it: {', '.join(near)}" if near else ""),
                record.offset + 5,
                "configuration.machine",
                "use a QEMU that has it, or start the source with a machine type that both have",
            )
        elif machines is None and self._dump.machine not in (name, None):
            yield Finding(
                Severity.WARNING,
                "machine",
                f"the dump was made for '{self._dump.machine}', the stream is of '{name}': "
                "whether the target has that machine type is unknown",
                record.offset + 5,
                "configuration.machine",
                f"make the dump with -M {name}, or pass the binary instead of a dump",
            )

    def _layouts(self, record: Record, described: Fields | None) -> tuple[DumpLayout, ...]:
        if described is not None:
            return self._dump.layouts.get(described.name, ())
        # Without a description the name is all there is.
        return self._dump.of_section(record.name or "")

    def _best(
        self, record: Record, label: str, layouts: tuple[DumpLayout, ...], described: Fields | None
    ) -> list[Finding]:
        # Of classes that share a name, the one that fits best is meant; if none fits, part
        # of a class may.
        before = self._fields

        def tried(layout: DumpLayout) -> tuple[list[Finding], int]:
            self._fields = before
            return list(self._section(record, label, layout, described)), self._fields

        results = [tried(layout) for layout in layouts]
        if described is not None and all(_weight(found)[0] for found, _ in results):
            results += map(tried, self._dump.inside(described.name))
        best, self._fields = min(results, key=lambda result: _weight(result[0]))
        return best

    def _unknown(self, record: Record, label: str, name: str) -> Finding:
        return Finding(
            Severity.WARNING,
            "device",
            f"no device class of this QEMU has the description '{name}'",
            record.offset,
            f"section:{label}",
            "check whether this QEMU has the device (-device help); without it, QEMU refuses",
        )

    def _section(
        self, record: Record, label: str, layout: DumpLayout, described: Fields | None
    ) -> Iterator[Finding]:
        self._offset = record.offset
        path = f"section:{label}"
        version = record.version_id or 0
        if not layout.minimum <= version <= layout.version:
            yield self._error(
                "version",
                path,
                f"version {version}; this QEMU reads {_span(layout)}",
                "use another machine type on the source, or a newer target",
            )
        elif described is not None:
            yield from self._fields_of(path, described, layout, version)

    def _error(self, rule: str, path: str, message: str, do: str) -> Finding:
        return Finding(Severity.ERROR, rule, message, self._offset, path, do)

    def _fields_of(
        self, path: str, ours: Fields, theirs: DumpLayout, version: int
    ) -> Iterator[Finding]:
        sent = _merged(ours.fields)
        expected = [field for field in theirs.fields if field.since <= version]
        pairs = _paired(sent, expected)
        partner = {id(field): known for field, known in pairs}
        taken = {id(known) for _, known in pairs}
        missing = [f for f in expected if id(f) not in taken and not f.conditional and f.size]
        for field in sent:
            known = partner.get(id(field))
            where = join(path, field.name)
            self._fields += 1
            if known is not None:
                yield from self._field(where, field, known)
            elif field.total:
                late = next((f for f in theirs.fields if f.name == field.name), None)
                why = f" in version {version} (since {late.since})" if late else ""
                yield self._error(
                    "field",
                    where,
                    f"{field.total} bytes that this QEMU does not read{why}",
                    "use a machine type on the source that does not send the field",
                )
        arrays = ARRAYS.get(theirs.name, ())
        for known in missing:
            if known.name in arrays:
                continue  # it has no elements
            # A structure may be an array of a newer QEMU.
            yield Finding(
                Severity.WARNING if known.layout is None else Severity.INFO,
                "field",
                "this QEMU reads it; the stream has none (or an array without elements)",
                self._offset,
                join(path, known.name),
                "compare the descriptions of both QEMUs; unless it is an empty array, QEMU refuses",
            )
        yield from self._subsections(path, ours, theirs)

    def _field(self, path: str, field: Field, known: DumpField) -> Iterator[Finding]:
        if known.name.startswith("unused"):
            return  # paired by its size
        plain = field.type in SCALARS and field.type not in _IN_MEMORY
        if plain and known.layout is None and known.size and field.size != known.size:
            yield self._error(
                "size",
                path,
                f"{field.size} bytes; this QEMU has {known.size} (one element, {field.type})",
                "use a machine type or QEMU on the source that sends the same width",
            )
        count = field.array_len if field.array_len is not None else 1
        if plain and known.count is not None and known.count > 1 and count != known.count:
            yield self._error(
                "size",
                path,
                f"{count} elements; this QEMU reads {known.count}",
                "use a machine type or QEMU on the source that sends as many",
            )
        if known.layout is not None and field.groups and field.groups[0].name == known.layout.name:
            # A structure is read by the target's own version of it.
            version = known.layout.version
            if field.type == "vstruct":
                version = min(version, field.groups[0].version)
            for group in field.groups:
                if group.name == known.layout.name:
                    yield from self._fields_of(path, group, known.layout, version)

    def _subsections(self, path: str, ours: Fields, theirs: DumpLayout) -> Iterator[Finding]:
        known = {layout.name: layout for layout in theirs.subsections}
        for subsection in ours.subsections:
            where = join(path, subsection.name)
            layout = known.get(subsection.name)
            if layout is None:
                yield self._error(
                    "subsection",
                    where,
                    "this QEMU does not know the subsection and refuses the stream",
                    "use a machine type on the source that does not send it, or a newer target",
                )
            elif not layout.minimum <= subsection.version <= layout.version:
                yield self._error(
                    "subsection-version",
                    where,
                    f"version {subsection.version}; this QEMU reads {_span(layout)}",
                    "use another machine type on the source, or a newer target",
                )
            else:
                yield from self._fields_of(where, subsection, layout, subsection.version)


def _weight(found: list[Finding]) -> tuple[int, int]:
    errors = sum(one.severity is Severity.ERROR for one in found)
    # A version that is refused ends the comparison, so it outweighs any field.
    refused = any(one.rule == "version" for one in found)
    return errors + (1000 if refused else 0), len(found)


def _span(layout: DumpLayout) -> str:
    if layout.minimum == layout.version:
        return f"{layout.version} only"
    return f"{layout.minimum} to {layout.version}"


def _merged(fields: tuple[Field, ...]) -> list[Field]:
    # Neighbours of one name are the elements of one array.
    merged: list[Field] = []
    for field in fields:
        if merged and merged[-1].name == field.name:
            last = merged[-1]
            count = (last.array_len or 1) + (field.array_len or 1)
            groups = last.groups or field.groups
            merged[-1] = Field(last.name, last.type, max(last.size, field.size), count, groups)
        else:
            merged.append(field)
    return merged


def _paired(sent: list[Field], expected: list[DumpField]) -> list[tuple[Field, DumpField]]:
    # By name and order; between those, fields at the same place were renamed.
    matcher = difflib.SequenceMatcher(
        None, [field.name for field in sent], [field.name for field in expected], autojunk=False
    )
    pairs: list[tuple[Field, DumpField]] = []
    for kind, a, a_end, b, b_end in matcher.get_opcodes():
        if kind == "equal":
            pairs += zip(sent[a:a_end], expected[b:b_end], strict=True)
        elif kind == "replace":
            pairs += _renamed(sent[a:a_end], expected[b:b_end])
    return pairs


def _renamed(sent: list[Field], expected: list[DumpField]) -> list[tuple[Field, DumpField]]:
    # In order; conditional fields of the target that do not fit are skipped.
    pairs: list[tuple[Field, DumpField]] = []
    rest = list(expected)
    if len(rest) == 1 and rest[0].name.startswith("unused"):
        # Several fields became one run of unused bytes.
        if sum(field.total for field in sent) == rest[0].size:
            pairs = [(field, rest[0]) for field in sent]
        return pairs
    for field in sent:
        for index, known in enumerate(rest):
            if _fits(field, known):
                pairs.append((field, known))
                del rest[: index + 1]
                break
            if not known.conditional:
                break
    return pairs


def _fits(field: Field, known: DumpField) -> bool:
    if known.layout is not None or field.groups:
        return known.layout is not None and bool(field.groups)
    if known.name.startswith("unused"):
        return known.size == field.total
    if field.type in _BYTES and known.size:
        # What became unused bytes was an array of any kind before.
        count, rest = divmod(field.total, known.size)
        return not rest and known.count in (None, count)
    return known.size == field.size
