"""Why a QEMU did not take a stream: its words beside what the stream has there.

QEMU's messages name a section, a field or a RAM block; each form of message is
one line of data here, with what can be done about it.  The wording changed over
the years, so the patterns look for the parts that stayed.

Source: messages of QEMU 5.2, 7.2, 10.0 and 11.1 (``migration/savevm.c``,
``migration/vmstate.c``, ``migration/ram.c``, ``hw/core/machine.c``,
``target/i386/machine.c``), as real processes printed them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qemu_svm.errors import StreamError
from qemu_svm.findings.qemus import newer_subsections
from qemu_svm.machine import Machine
from qemu_svm.machine.paths import section_label
from qemu_svm.rules import Finding, Severity
from qemu_svm.stream import Kind, Record

_NAMED = (Kind.START, Kind.FULL)


@dataclass(frozen=True, slots=True)
class _Form:
    # ``pattern`` may have groups ``name``, ``instance``, ``field``, ``block``.
    rule: str
    pattern: re.Pattern[str]
    do: str


def _form(rule: str, pattern: str, do: str) -> _Form:
    return _Form(rule, re.compile(pattern), do)


_FORMS = (
    _form("no-stream", r"Not a migration stream|Unsupported migration stream version",
          "QEMU got something else: is the file packed in a way that was not seen?"),
    _form("machine", r"Machine type received is '(?P<name>[^']*)' and local is '[^']*'",
          "start QEMU with -M and the stream's machine type"),
    _form("capability", r"(?:[Cc]apability|postcopy is disabled)",
          "give --capability and the name, or save again without it"),
    _form("compressed", r"unexpected compressed page",
          "the stream has compressed pages: give --capability compress"),
    _form("section-unknown",
          r"Unknown (?:savevm )?section or instance '(?P<name>[^']*)' (?P<instance>\d+)",
          "this QEMU has no such device: add it, at the same address"),
    _form("version", r"unsupported version \d+ for '(?P<name>[^']*)'",
          "svmstream compat lists what is too new; a newer QEMU takes it"),
    _form("footer", r"[Mm]issing section footer for (?P<name>\S+)",
          "QEMU read more or less than the section has: another version of the device, or damage"),
    _form("field", r"Failed to load (?P<name>[^\s:]+):(?P<field>[\w.\[\]-]+)",
          "svmstream show prints the value that was not taken"),
    _form("ram-size", r"Size mismatch: (?P<block>[^\s:]+): 0x[0-9a-f]+ != 0x[0-9a-f]+",
          "start QEMU with the memory, firmware and devices of the source"),
    _form("ram-unknown", r"Unknown ramblock \"(?P<block>[^\"]*)\"",
          "this QEMU has no such block: another machine, firmware or device"),
    _form("nested", r"nested state",
          "svmstream check tells which kernels take the nested state, and why not"),
    _form("section",
          r"error while loading state for instance (?P<instance>0x[0-9a-f]+|\d+) "
          r"of device '(?P<name>[^']*)'",
          "svmstream show prints the section"),
    _form("section", r"error while loading state section id \d+\((?P<name>[^)]*)\)",
          "svmstream inspect tells whether the stream is damaged there"),
)  # fmt: skip


def explain(machine: Machine, words: Iterable[str]) -> list[Finding]:
    """Say what the stream has at the places that QEMU's messages name.

    :param words: lines that QEMU wrote, or its ``error-desc``.
    """
    found: list[Finding] = []
    for line in words:
        for form in _FORMS:
            match = form.pattern.search(line)
            if match is None:
                continue
            parts = match.groupdict()
            for text, offset in _known(machine, form, parts):
                finding = Finding(Severity.ERROR, f"refused-{form.rule}", text, offset)
                if finding not in found:
                    found.append(finding)
    found += (
        Finding(
            Severity.ERROR,
            "refused-damage",
            f"the stream is damaged: {error.detail()}; svmstream inspect shows all of it",
            error.offset,
        )
        for error in machine.stream.problems
    )
    return found


def _known(
    machine: Machine, form: _Form, parts: dict[str, str | None]
) -> Iterator[tuple[str, int | None]]:
    if parts.get("block"):
        yield _block(machine, parts["block"] or "", form), None
        return
    if form.rule == "machine":
        yield f"the stream was saved by machine type '{machine.name}'; {form.do}", None
        return
    name = parts.get("name")
    if name is None:
        yield form.do, None
        return
    number = parts.get("instance")
    instance = int(number, 0) if number else None
    records = [
        record
        for record in machine.stream.records
        if record.kind in _NAMED
        and _called(machine, record, name)
        and instance in (None, record.instance_id)
    ]
    if not records:
        yield f"the stream has no section '{name}'; {form.do}", None
    for record in records[:1]:
        yield f"{_section(machine, record, parts.get('field'))}; {form.do}", record.offset


def _called(machine: Machine, record: Record, name: str) -> bool:
    # QEMU says the section's name, or its description's (the part behind the path).
    device = machine.stream.device(record)
    return name in (record.name, device.layout.name if device is not None else None)


def _section(machine: Machine, record: Record, field: str | None) -> str:
    text = (
        f"section:{section_label(machine, record)}, version {record.version_id}, is "
        f"{record.payload_size} bytes at {record.payload:#x}"
    )
    cpu = record.name == "cpu"
    if field is None and not cpu:
        return text
    try:
        tree = machine.stream.values(record)
    except StreamError as error:
        return f"{text}, and does not hold what is described ({error.detail()})"
    if field is None:
        newer = [] if tree is None else list(newer_subsections(tree))
        return ", ".join(
            [text, *(f"has {one.name}, which QEMU {since} knows and {without} does not"
                     for one, without, since in newer)]
        )  # fmt: skip
    for path, value in tree.walk() if tree is not None else ():
        if path.split(".")[-1] == field or path.endswith(f".{field}"):
            shown = value.value.hex(" ")[:60] if isinstance(value.value, bytes) else value.value
            return f"{text}; {path} at {value.offset:#x} is {shown}"
    return text


def _block(machine: Machine, name: str, form: _Form) -> str:
    for block in machine.stream.blocks:
        if block.name == name:
            return f"block '{name}' has {block.used_length:#x} bytes in the stream; {form.do}"
    return f"the stream has no block '{name}'; {form.do}"
