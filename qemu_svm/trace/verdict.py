"""What is said of a put: rule by rule, and all together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qemu_svm.rules import Rule, Severity
from qemu_svm.trace.phases import Step
from qemu_svm.trace.rules import rule


class Outcome(StrEnum):
    """What a rule says of a put."""

    OK = "ok"
    VIOLATED = "violated"
    UNKNOWN = "unknown"
    DEPENDS = "depends"


class Verdict(StrEnum):
    """What all rules together say."""

    OK = "ok"
    VIOLATES = "violates"
    UNKNOWN = "cannot be judged"


@dataclass(frozen=True, slots=True)
class Judged:
    """One rule on one put.

    :param line: where it shows in the log.
    :param note: what was seen, if that is not said by the rule itself.
    """

    rule: Rule
    outcome: Outcome
    line: int
    note: str = ""

    @property
    def bad(self) -> bool:
        """Whether it counts."""
        return self.outcome is Outcome.VIOLATED and self.rule.trace_severity is not Severity.INFO


@dataclass(frozen=True, slots=True)
class Put:
    """A put of nested state and what is said of it.

    :param phase: which of the vCPU's phases.
    :param order: the ioctls from the first of this put to what ended it, reads
        and other devices' left out.
    :param run: the KVM_RUN that used it, if one did.
    :param superseded: line of the put of nested state that came before any KVM_RUN.
    """

    phase: int
    line: int
    order: tuple[Step, ...]
    judged: tuple[Judged, ...]
    run: Step | None = None
    superseded: int | None = None

    @property
    def verdict(self) -> Verdict:
        """Violated beats unknown beats ok."""
        if any(one.bad for one in self.judged):
            return Verdict.VIOLATES
        if any(one.outcome is Outcome.UNKNOWN for one in self.judged):
            return Verdict.UNKNOWN
        return Verdict.OK


def judged(rule_id: str, outcome: Outcome, line: int, note: str = "") -> Judged:
    """Say what the rule with this id says."""
    return Judged(rule(rule_id), outcome, line, note)
