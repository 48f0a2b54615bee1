"""Explains why a QEMU refused a stream: what the stream has where QEMU's message points.

QEMU's messages name a section, a field or a RAM block; each kind of message is one row
of data here, with what to do about it.  The wording changed over the years, so the
patterns match the parts that did not.

Source: messages of QEMU 5.2, 7.2, 10.0 and 11.1 (``migration/savevm.c``,
``migration/vmstate.c``, ``migration/ram.c``, ``hw/core/machine.c``,
``target/i386/machine.c``), as real processes printed them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qemu_svm.errors import StreamError, StreamRefused
from qemu_svm.findings.qemus import newer_subsections
from qemu_svm.findings.results import RestoreRefusal
from qemu_svm.machine import Machine
from qemu_svm.machine.paths import section_label
from qemu_svm.rules import Finding, Severity
from qemu_svm.stream import Kind, Record

_NAMED = (Kind.START, Kind.FULL)


@dataclass(frozen=True, slots=True)
class _Message:
    # ``pattern`` may have groups ``name``, ``instance``, ``field``, ``block``.
    rule: str
    pattern: re.Pattern[str]
    do: str


def _message(rule: str, pattern: str, do: str) -> _Message:
    return _Message(rule, re.compile(pattern), do)


_MESSAGES = (
    _message("no-stream", r"Not a migration stream|Unsupported migration stream version",
             "QEMU received other data: the file may be compressed or wrapped in an unknown way"),
    _message("machine", r"Machine type received is '(?P<name>[^']*)' and local is '[^']*'",
             "start QEMU with -M and the stream's machine type"),
    _message("capability", r"(?:[Cc]apability|postcopy is disabled)",
             "pass --capability with its name, or save again without it"),
    _message("compressed", r"unexpected compressed page",
             "the stream has compressed pages: pass --capability compress"),
    _message("section-unknown",
             r"Unknown (?:savevm )?section or instance '(?P<name>[^']*)' (?P<instance>\d+)",
             "this QEMU does not have the device: add it, at the same address"),
    _message("version", r"unsupported version \d+ for '(?P<name>[^']*)'",
             "svmstream compat lists what is too new; use a newer QEMU"),
    _message("footer", r"[Mm]issing section footer for (?P<name>\S+)",
             "QEMU read more or less than the section has: the device has another version, or the "
             "stream is damaged"),
    _message("field", r"Failed to load (?P<name>[^\s:]+):(?P<field>[\w.\[\]-]+)",
             "svmstream show prints the refused value"),
    _message("ram-size", r"Size mismatch: (?P<block>[^\s:]+): 0x[0-9a-f]+ != 0x[0-9a-f]+",
             "start QEMU with the memory, firmware and devices of the source"),
    _message("ram-unknown", r"Unknown ramblock \"(?P<block>[^\"]*)\"",
             "this QEMU does not have the block: its machine, firmware or devices differ"),
    _message("nested", r"nested state",
             "svmstream check lists the kernels that accept the nested state"),
    _message("section",
             r"error while loading state for instance (?P<instance>0x[0-9a-f]+|\d+) "
             r"of device '(?P<name>[^']*)'",
             "svmstream show prints the section"),
    _message("section", r"error while loading state section id \d+\((?P<name>[^)]*)\)",
             "svmstream inspect shows whether the stream is damaged there"),
)  # fmt: skip


def refusal(machine: Machine, path: str, error: StreamRefused) -> RestoreRefusal:
    """Return QEMU's message beside the part of the stream that it is about.

    :param path: of the stream, as given.
    """
    reason = tuple(error.reason.splitlines())
    return RestoreRefusal(path, reason, tuple(explain_refusal(machine, reason)))


def explain_refusal(machine: Machine, words: Iterable[str]) -> list[Finding]:
    """Describe what the stream has at the places that QEMU's messages name.

    :param words: lines that QEMU printed, or its ``error-desc``.
    """
    found: list[Finding] = []
    for line in words:
        for message in _MESSAGES:
            match = message.pattern.search(line)
            if match is None:
                continue
            parts = match.groupdict()
            for text, offset in _places(machine, message, parts):
                rule = f"refused-{message.rule}"
                finding = Finding(Severity.ERROR, rule, text, offset, do=message.do)
                if finding not in found:
                    found.append(finding)
    found += (
        Finding(
            Severity.ERROR,
            "refused-damage",
            f"the stream is damaged: {error.detail()}; svmstream inspect lists all damage",
            error.offset,
        )
        for error in machine.stream.problems
    )
    return found


def _places(
    machine: Machine, message: _Message, parts: dict[str, str | None]
) -> Iterator[tuple[str, int | None]]:
    if parts.get("block"):
        yield _block(machine, parts["block"] or "", message), None
        return
    if message.rule == "machine":
        yield f"the stream was saved by machine type '{machine.name}'; {message.do}", None
        return
    name = parts.get("name")
    if name is None:
        yield message.do, None
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
        yield f"the stream has no section '{name}'; {message.do}", None
    for record in records[:1]:
        yield f"{_section(machine, record, parts.get('field'))}; {message.do}", record.offset


def _called(machine: Machine, record: Record, name: str) -> bool:
    # QEMU prints the section's name, or its description's (the part after the path).
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
        return f"{text}, and does not match its description ({error.detail()})"
    if field is None:
        newer = [] if tree is None else list(newer_subsections(tree))
        return ", ".join(
            [text, *(f"has {one.name}, which is known to QEMU {since} and not to {without}"
                     for one, without, since in newer)]
        )  # fmt: skip
    for path, value in tree.walk() if tree is not None else ():
        if path.split(".")[-1] == field or path.endswith(f".{field}"):
            shown = value.value.hex(" ")[:60] if isinstance(value.value, bytes) else value.value
            return f"{text}; {path} at {value.offset:#x} is {shown}"
    return text


def _block(machine: Machine, name: str, message: _Message) -> str:
    for block in machine.stream.blocks:
        if block.name == name:
            return f"block '{name}' has {block.used_length:#x} bytes in the stream; {message.do}"
    return f"the stream has no block '{name}'; {message.do}"
