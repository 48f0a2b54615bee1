"""Damage of a stream, and parts of it that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.errors import StreamError
from qemu_svm.findings.consistency import consistency
from qemu_svm.machine import Machine
from qemu_svm.rules import Finding, Severity
from qemu_svm.stream import LayoutOrigin


def findings(machine: Machine) -> list[Finding]:
    """List the damage and the contradictions of a stream and its vCPUs."""
    found = [_from_error(error) for error in machine.stream.problems + machine.problems]
    found.extend(_description(machine))
    found.extend(consistency(machine))
    return found


def _from_error(error: StreamError) -> Finding:
    text = error.detail()
    if error.hint:
        text = f"{text} ({error.hint})"
    return Finding(Severity.ERROR, error.rule, text, error.offset, do=error.hint or "")


def _description(machine: Machine) -> Iterator[Finding]:
    if machine.stream.complete and machine.stream.description is None:
        yield Finding(
            Severity.WARNING,
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
