"""What looks wrong at first sight: damage, and parts that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.findings.consistency import Violation, consistency
from qemu_svm.findings.model import Finding, Severity, from_error
from qemu_svm.machine import Machine
from qemu_svm.stream import LayoutOrigin


def findings(machine: Machine) -> list[Finding]:
    """List what is wrong with a stream and its vCPUs; empty for a sound one."""
    found = [from_error(error) for error in machine.stream.problems + machine.problems]
    found.extend(_description(machine))
    found.extend(_rule(violation) for violation in consistency(machine))
    return found


def _rule(violation: Violation) -> Finding:
    from qemu_svm.findings.rules import RULES  # all the words: only if one is needed

    severity = Severity(RULES[violation.rule].severity)
    return Finding(severity, violation.rule, violation.message, violation.offset)


def _description(machine: Machine) -> Iterator[Finding]:
    if machine.stream.complete and machine.stream.description is None:
        yield Finding(
            Severity.WARNING,
            "no-description",
            "the stream does not describe itself (suppress-vmdesc, postcopy or a very old "
            "machine type): vCPUs and a few sections are decoded with built-in layouts, "
            + (
                "others where the dump fits in one way only, the rest is only listed"
                if machine.stream.description_source is LayoutOrigin.DUMP
                else "the other device sections are only listed"
            )
            + (
                ""
                if machine.stream.footers
                else "; it has no footers either, so where these "
                "sections end is a guess, and whether the last one is whole cannot be told"
            ),
        )
