"""The page of ``report``: one file with all that is known about a stream.

It needs neither a network nor a script: a Content-Security-Policy forbids both.  Whatever
comes from an input is escaped by the templates, which cannot print in another way, and
passes the redaction (:mod:`qemu_svm.render.html.values`) first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import basename
from typing import TYPE_CHECKING, Any

from qemu_svm import __version__
from qemu_svm.findings.advisories import COMMON
from qemu_svm.findings.check import summary
from qemu_svm.findings.overview import Overview
from qemu_svm.findings.verdict import Verdict
from qemu_svm.model.profiles import ranges
from qemu_svm.optional import optional
from qemu_svm.render.html import ram_map
from qemu_svm.render.html.domain import redacted_xml, secrets_of_xml
from qemu_svm.render.html.fields import (
    MSRS,
    PLAIN,
    Field,
    Row,
    Shown,
    columns,
    fields,
    registers,
)
from qemu_svm.render.html.restore import Drawing, drawing
from qemu_svm.render.html.values import Address, Cell, Name, Offset, Redaction, Uuid
from qemu_svm.render.listing import counted, listed
from qemu_svm.render.sizes import size_words
from qemu_svm.rules import Finding, Severity
from qemu_svm.snapshots.forms import WORDS
from qemu_svm.source import Source
from qemu_svm.source.details import LibvirtDetails, SnapshotDetails
from qemu_svm.stream import Kind, Record
from qemu_svm.stream.vmstate.values import Value

if TYPE_CHECKING:
    from qemu_svm.machine import Machine, Vcpu

_ORDER = {severity: place for place, severity in enumerate(Severity)}
_MOST_SECTIONS = 600
_MOST_VCPUS = 1024
_AREAS = {
    "header": "struct kvm_nested_state: header",
    "control": "Control area: what L1 asked for L2",
    "l1_save": "Save area: L1's own state",
}
_HEADINGS = {
    Verdict.RIGHT: "Restored right",
    Verdict.OPEN: "Accepted; nothing is run",
    Verdict.REFUSED: "Refused",
    Verdict.WRONG: "L2 or L1 continues with wrong registers",
    Verdict.BROKEN: "The vCPU cannot run",
}


@dataclass(frozen=True, slots=True)
class Vcpus:
    """vCPUs that are judged alike.

    :param indices: their numbers, in words.
    """

    indices: str
    mode: str
    words: str


@dataclass(frozen=True, slots=True)
class VcpuPart:
    """Everything about one vCPU.

    :param notes: what is wrong with the restore or the stream, as far as it has a field.
    """

    vcpu: Vcpu
    title: str
    caption: str
    rows: list[Row]
    parts: list[tuple[str, list[Field]]]
    registers: list[tuple[str, Shown, Offset]]
    drawings: list[Drawing]


@dataclass(frozen=True, slots=True)
class Item:
    """A finding, with the kernels in words."""

    finding: Finding
    kernels: str
    offset: Offset | None


@dataclass(frozen=True, slots=True)
class KernelRow:
    """Kernels with the same verdict and the same reasons, of one or more vCPUs."""

    vcpu: str
    kernels: str
    verdict: str
    lines: tuple[str, ...]


def render(result: Overview, redact: frozenset[str]) -> str:
    """Return the page.

    :param redact: what to leave out, see ``findings/overview.py``.
    :raises EnvironmentFault: jinja2 is not installed.
    """
    optional("jinja2", "a page")
    from qemu_svm.render.html.engine import filled

    return filled("page.html", _redaction(result, redact), _context(result, redact))


def _context(result: Overview, redact: frozenset[str]) -> dict[str, Any]:
    machine, stream = result.machine, result.machine.stream
    parts = [_vcpu(result, vcpu, report) for vcpu, report in result.restores]
    if not parts:
        parts = [_vcpu(result, vcpu, None) for vcpu in machine.vcpus[:1]]
    own, common = _findings(result)
    return {
        "version": __version__,
        "redacted": sorted(redact),
        "contents": result.contents,
        "title": Name(basename(stream.source.path), "stream"),
        "verdict": _verdict(result),
        "facts": list(_facts(machine)),
        "groups": _groups(result),
        "chips": [
            (vcpu.index, "L2" if vcpu.guest_mode else "L1", vcpu.smm)
            for vcpu in machine.vcpus[:_MOST_VCPUS]
        ],
        "more_chips": max(0, len(machine.vcpus) - _MOST_VCPUS),
        "vcpus": parts,
        "drawn": any(part.drawings for part in parts),
        "areas": _AREAS,
        "findings": own,
        "common": common,
        "kernels": list(_kernels(result)),
        "sections": list(_sections(machine)),
        "ram": None if result.pages is None else _ram(result),
        "diff": None if result.diff is None else _diff(result),
        "trace": None if result.trace is None else _trace(result),
        "excerpts": [(one, _hexdump(one.data, one.address)) for one in result.excerpts],
        "xml": list(_xml(stream.source, redact)),
    }


# --- what is left out ---


def _redaction(result: Overview, kinds: frozenset[str]) -> Redaction:
    if not kinds:
        return Redaction(kinds)
    machines = [result.machine, *([result.diff.b] if result.diff is not None else [])]
    names: list[str] = []
    secrets: set[int] = set()
    plain: set[int] = set()
    for machine in machines:
        source = machine.stream.source
        names += [source.path, basename(source.path)]
        details = source.details
        if isinstance(details, SnapshotDetails):
            names += [details.name]
        elif isinstance(details, LibvirtDetails):
            names += [details.name or "", details.uuid or ""]
            for text in (details.xml, details.cookie):
                names += secrets_of_xml(text or "")
        for vcpu in machine.vcpus:
            for value, name in _numbers(vcpu):
                (plain if name in PLAIN else secrets).add(value)
                if name in MSRS and "msrs" not in kinds:
                    secrets.discard(value)
    if result.trace is not None:
        names += [result.trace.path, basename(result.trace.path)]
    return Redaction(kinds, names, secrets, plain)


def _numbers(vcpu: Vcpu) -> Iterator[tuple[int, str]]:
    for name, value in vcpu.registers.items():
        if isinstance(value.value, int):
            yield value.value, name
    for segment in vcpu.segments.values():
        yield segment.base, "base"
        yield segment.limit, "limit"
    if vcpu.nested is not None:
        yield from _leaves(vcpu.nested.tree())


def _leaves(value: Value) -> Iterator[tuple[int, str]]:
    for child in value.children:
        yield from _leaves(child)
    if isinstance(value.value, int):
        yield value.value, value.name


# --- the first screen ---


def _verdict(result: Overview) -> dict[str, Any]:
    found, to = result.verdict, result.destination
    judged = {one.verdict for by in result.check.verdicts.values() for one in by.values()}
    where = f"on {to}" if to is not None else "on all known kernels"
    if found is None:
        words, kind = "No vCPU with SVM state to judge", "open"
    elif len(judged) > 1:
        words = "Depends on the kernel" if to is None else f"Not alike for all vCPUs on {to}"
        kind = found.value
    else:
        words, kind = f"{_HEADINGS[found]} {where}", found.value
    severities = [one.severity for one in _all_findings(result)]
    counts = [
        (severity.value, f"{count} {severity.value}{'s' if count > 1 else ''}")
        for severity in (Severity.ERROR, Severity.WARNING)
        if (count := severities.count(severity))
    ]
    return {"words": words, "kind": kind, "complete": result.complete, "counts": counts}


def _groups(result: Overview) -> list[Vcpus]:
    machine = result.machine
    groups: dict[tuple[str, str], list[int]] = {}
    for vcpu in machine.vcpus:
        mode = "runs L2 (guest mode)" if vcpu.guest_mode else "not in guest mode"
        mode += "" if vcpu.gif else ", GIF clear"
        mode += ", in SMM" if vcpu.smm else ""
        words = "not judged"
        if vcpu.index in result.check.verdicts:
            words = summary(result.check.report, vcpu.index)
        groups.setdefault((mode, words), []).append(vcpu.index)
    return [Vcpus(_spans(numbers), *key) for key, numbers in groups.items()]


def _spans(numbers: Sequence[int]) -> str:
    # 0-3, 7
    runs: list[list[int]] = []
    for one in numbers:
        if runs and one == runs[-1][-1] + 1:
            runs[-1][1:] = [one]
        else:
            runs.append([one])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _facts(machine: Machine) -> Iterator[tuple[str, list[Cell]]]:
    stream = machine.stream
    source = stream.source
    yield "file", [Name(source.path, "stream")]
    packed = f", from {source.compression}" if source.compression != "none" else ""
    yield "size", [f"{source.size()} bytes{packed}"]
    if machine.form is None:
        yield "machine", [machine.name or "not in the stream"]
    else:
        yield "input", [WORDS[machine.form]]
    yield from _container(source)
    if stream.configuration is not None:
        if stream.configuration.capabilities:
            yield "capabilities", [" ".join(stream.configuration.capabilities)]
        if stream.configuration.uuid:
            yield "uuid", [Uuid(stream.configuration.uuid.hex())]
    if machine.blocks:
        total = size_words(sum(block.used_length for block in machine.blocks))
        yield "RAM", [f"{total} in {len(machine.blocks)} blocks"]
    if machine.form is None:
        yield "devices", [f"{sum(1 for _ in stream.sections())} sections"]
        yield "description", [str(stream.description_source)]
    nested = sum(vcpu.guest_mode for vcpu in machine.vcpus)
    yield "vCPUs", [f"{len(machine.vcpus)}, {nested or 'none'} in L2"]


def _container(source: Source) -> Iterator[tuple[str, list[Cell]]]:
    details = source.details
    if isinstance(details, LibvirtDetails):
        yield "container", [f"libvirt save image, format {details.format}"]
        if details.name is not None:
            yield "domain", [Name(details.name, "domain")]
        if details.uuid is not None:
            yield "uuid", [Uuid(details.uuid)]
    elif isinstance(details, SnapshotDetails):
        yield "container", ["qcow2, snapshot ", Name(details.name, "snapshot")]
        yield "saved", [details.date]
    if source.stream_offset:
        yield "stream at", [Offset(source.stream_offset)]


def _findings(result: Overview) -> tuple[list[Item], list[Item]]:
    found = _all_findings(result)
    common = [one for one in found if one.rule in COMMON and one.severity is Severity.INFO]
    own = sorted((one for one in found if one not in common), key=lambda f: _ORDER[f.severity])
    return [_item(one) for one in own], [_item(one) for one in common]


def _all_findings(result: Overview) -> list[Finding]:
    # Contradictions are found by inspect and by check; each is shown once.
    found = list(result.inspection.problems)
    known = {(one.rule, one.message) for one in found}
    return found + [one for one in result.check.findings if (one.rule, one.message) not in known]


def _item(finding: Finding) -> Item:
    offset = None if finding.offset is None else Offset(finding.offset)
    return Item(finding, ranges(finding.kernels) if finding.kernels else "", offset)


def _kernels(result: Overview) -> Iterator[KernelRow]:
    groups: dict[tuple[tuple[str, str, tuple[str, ...]], ...], list[int]] = {}
    for index, verdicts in result.check.verdicts.items():
        by: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for name, one in verdicts.items():
            by.setdefault((one.verdict.value, one.lines), []).append(name)
        key = tuple((ranges(names), verdict, lines) for (verdict, lines), names in by.items())
        groups.setdefault(key, []).append(index)
    for rows, indices in groups.items():
        for kernels, verdict, lines in rows:
            yield KernelRow(_spans(indices), kernels, verdict, lines)


# --- a vCPU ---


def _vcpu(result: Overview, vcpu: Vcpu, report: Any) -> VcpuPart:
    by_register: dict[tuple[str, str], list[str]] = {}
    by_path: dict[str, list[str]] = {}
    own = f"vcpu{vcpu.index}."
    for one in (*result.inspection.problems, *result.check.findings):
        if one.path.startswith(own) and one.severity is not Severity.INFO:
            text = f"{one.rule}: {one.message}"
            if text not in by_path.setdefault(one.path, []):
                by_path[one.path].append(text)
            place = _register_of(one.path.removeprefix(own), guest_mode=vcpu.guest_mode)
            if place is not None and text not in by_register.setdefault(place, []):
                by_register[place].append(text)
    drawings = []
    if report is not None:
        pairs = list(zip(report.simulations, report.judgements, strict=True))
        drawings = [drawing(*pair) for pair in pairs]
        for simulation, judgement in pairs:
            for one in judgement.differences:
                by = f"step {one.step}" if one.step else "the reset"
                whose = f", {one.whose}'s" if one.whose else ""
                text = f"{simulation.kernel.name}: would run with another value{whose}, from {by}"
                by_register.setdefault((one.level, one.register), []).append(text)
    nested = vcpu.nested
    table = []
    if nested is not None and nested.is_svm:
        table = list(fields(vcpu, nested, by_path))
    mode = "runs L2" if vcpu.guest_mode else "not in guest mode"
    caption = "L2 is in the vCPU's registers, L1 in the save area of the nested state."
    if not vcpu.guest_mode:
        caption = "The vCPU's registers are those of the level that was running."
    return VcpuPart(
        vcpu, f"vCPU {vcpu.index}: {mode}", caption, columns(vcpu, by_register), table,
        [(name, shown, Offset(offset)) for name, shown, offset in registers(vcpu)], drawings,
    )  # fmt: skip


_PLACE = re.compile(r"(registers|segments|nested\.l1_save)\.(\w+)")


def _register_of(path: str, *, guest_mode: bool) -> tuple[str, str] | None:
    match = _PLACE.match(path)
    if match is None:
        return None
    level = "L1" if match[1] == "nested.l1_save" or not guest_mode else "L2"
    return level, match[2]


# --- the rest ---


@dataclass(frozen=True, slots=True)
class Section:
    """A row of the table of sections."""

    offset: Offset
    size: int
    kind: str
    version: str
    name: Cell
    note: str


def _sections(machine: Machine) -> Iterator[Section]:
    for one in listed(machine.stream.records, _MOST_SECTIONS):
        if isinstance(one, Record):
            yield _section(one)
        else:
            yield Section(Offset(one.offset), one.size, "…", "", one.words, "")


def _section(record: Record) -> Section:
    note = ""
    if record.instance_id:
        note = f"instance {record.instance_id}"
    if record.kind is Kind.SKIPPED and record.count:
        note = counted(record)
    elif record.kind is Kind.LOST:
        note = "damage: no record"
    elif record.opaque:
        note = f"{note}{', ' if note else ''}not described"
    version = "" if record.version_id is None else str(record.version_id)
    return Section(
        Offset(record.offset), record.size, record.kind.value, version, record.name or "", note
    )


def _ram(result: Overview) -> dict[str, Any]:
    pages = result.pages
    assert pages is not None
    counts = pages.ram.counts()
    return {
        "sent": pages.ram.runs.records,
        "counts": [
            (words, count)
            for words, count in (
                ("whole", counts.normal),
                ("zero", counts.zero),
                ("as deltas (XBZRLE)", counts.xbzrle),
                ("compressed", counts.compressed),
            )
            if count
        ],
        "page_size": size_words(pages.stream.page_size),
        "blocks": ram_map.blocks(pages),
        "maps": (drawn := ram_map.maps(pages)),
        "more_maps": sum(pages.coverage[at].pages > 0 for at in pages.chosen) - len(drawn),
        "columns": ram_map.COLUMNS,
        "states": ram_map.STATES,
        "cell": ram_map.CELL,
        "rounds": ram_map.round_bars(result.rounds),
        "round_count": len(result.rounds),
    }


def _diff(result: Overview) -> dict[str, Any]:
    from qemu_svm.render.html import beside

    report = result.diff
    assert report is not None
    return {
        "a": Name(report.a.stream.source.path, "stream"),
        "b": Name(report.b.stream.source.path, "stream"),
        "machine_a": report.a.name or "",
        "machine_b": report.b.name or "",
        "same": report.same,
        "count": len(report.differences),
        "groups": beside.groups(report),
        "masked": list(beside.masked(report)),
        "renamed": report.comparison.renamed,
        "problems": [(side.upper(), str(error)) for side, error in report.comparison.problems],
    }


def _trace(result: Overview) -> dict[str, Any]:
    from qemu_svm.render.html import timeline

    trace = result.trace
    assert trace is not None
    return {
        "path": Name(trace.path, "log"),
        "trace": trace,
        "guess": trace.guess.words(),
        "lanes": timeline.lanes(trace),
        "refusals": [one for one in trace.refusals if one.bad],
    }


def _xml(source: Source, redact: frozenset[str]) -> Iterator[tuple[str, list[str]]]:
    details = source.details
    if not isinstance(details, LibvirtDetails):
        return
    for title, text in (("Domain XML", details.xml), ("Cookie", details.cookie)):
        if text:
            shown = redacted_xml(text) if "names" in redact else text
            yield title, shown.splitlines()


def _hexdump(data: bytes, address: int) -> list[tuple[Address, str, str]]:
    return [
        (
            Address(address + at),
            data[at : at + 16].hex(" "),
            "".join(chr(one) if 32 <= one < 127 else "." for one in data[at : at + 16]),
        )
        for at in range(0, len(data), 16)
    ]
