"""The inspection of a stream: its damage, and parts of it that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from qemu_svm.errors import StreamError
from qemu_svm.findings.consistency import consistency
from qemu_svm.machine import Machine, type_version
from qemu_svm.results import Result
from qemu_svm.rules import Finding, Severity
from qemu_svm.stream import Kind, LayoutOrigin

_ROUNDS = (Kind.PART, Kind.END)
_END_ONLY = 8
"""Bytes of a round of RAM in which nothing is sent."""

_MULTIFD_SAYS_SO = (8, 1)


@dataclass(frozen=True, slots=True, repr=False)
class Inspection(Result):
    """What is in a stream, and what looks wrong.

    :param ram: the stream was read with all its RAM records, so pages are counted.
    """

    verb: ClassVar[str] = "inspect"
    machine: Machine
    problems: tuple[Finding, ...]
    ram: bool = False


def findings(machine: Machine) -> list[Finding]:
    """List the damage and the contradictions of a stream and its vCPUs."""
    found = [_from_error(error) for error in machine.stream.problems + machine.problems]
    found.extend(_container(machine))
    found.extend(_description(machine))
    found.extend(_ram_left_out(machine))
    found.extend(_trailing(machine))
    found.extend(consistency(machine))
    return found


def _from_error(error: StreamError) -> Finding:
    text = error.detail()
    if error.hint:
        text = f"{text} ({error.hint})"
    return Finding(Severity.ERROR, error.rule, text, error.offset, do=error.hint or "")


def _container(machine: Machine) -> Iterator[Finding]:
    # libvirt reads the payload through the program that its header names.
    source = machine.stream.source
    details = source.details
    if details is None:
        return
    from qemu_svm.source.details import LibvirtDetails
    from qemu_svm.source.libvirt import FORMATS

    if not isinstance(details, LibvirtDetails):
        return
    inner = source.layers[source.layers.index("libvirt") + 1 :] if source.layers else ()
    payload = inner[0] if inner else "raw"
    if details.format not in FORMATS:
        yield Finding(
            Severity.WARNING,
            "libvirt-format",
            f"the libvirt header names the unknown format {details.format}; the payload is "
            f"{payload}: libvirt refuses the image",
            do="restore the stream with QEMU itself, or correct the format in the header",
        )
    elif payload != ("raw" if details.format == "sparse" else details.format):
        yield Finding(
            Severity.WARNING,
            "libvirt-format",
            f"the libvirt header says that the payload is {details.format}, but it is {payload}: "
            "libvirt cannot restore the image",
            do="restore the stream with QEMU itself, or correct the format in the header",
        )


def _ram_left_out(machine: Machine) -> Iterator[Finding]:
    stream = machine.stream
    configuration = stream.configuration
    if not stream.complete or configuration is None or configuration.capabilities:
        return  # x-ignore-shared and mapped-ram are among the capabilities
    if not any(block.used_length for block in stream.blocks) or not _newer(machine.name or ""):
        return
    numbers = {r.section_id for r in stream.records if r.kind is Kind.START and r.name == "ram"}
    rounds = [r for r in stream.records if r.kind in _ROUNDS and r.section_id in numbers]
    if rounds and all(record.payload_size == _END_ONLY for record in rounds):
        yield Finding(
            Severity.INFO,
            "ram-left-out",
            "no page of RAM is in the stream, by design of cpr-transfer and cpr-exec: memory "
            "stays in the host, and only a QEMU that gets it over the cpr channel can "
            "continue",
            rounds[0].offset,
        )


def _trailing(machine: Machine) -> Iterator[Finding]:
    at = machine.stream.trailing
    if at is not None:
        yield Finding(
            Severity.INFO,
            "trailing-data",
            f"{machine.stream.source.size() - at} bytes after the end of the stream are not part "
            "of it: a volume, such as one of Proxmox, keeps what a longer state has left there",
            at,
        )


def _newer(machine: str) -> bool:
    # With machine types of 8.1 and later a multifd stream says so in each round of RAM;
    # without that, what was left out may be in other channels.
    version = type_version(machine)
    return version is not None and version >= _MULTIFD_SAYS_SO


def _description(machine: Machine) -> Iterator[Finding]:
    stream = machine.stream
    if machine.form is None and stream.complete and stream.description is None:
        yield Finding(
            Severity.INFO if machine.stream.footers else Severity.WARNING,
            "no-description",
            "the stream does not describe itself (suppress-vmdesc, postcopy or a very old "
            "machine type): vCPUs and a few sections are decoded with built-in layouts, "
            + (
                "others with the dump where only one layout fits, the rest is only listed"
                if machine.stream.description_source is LayoutOrigin.DUMP
                else "the other device sections are only listed"
            )
            + (
                ""
                if machine.stream.footers
                else "; it has no footers either, so the ends of these sections are a guess, "
                "and whether the last one is complete is unknown"
            ),
        )
