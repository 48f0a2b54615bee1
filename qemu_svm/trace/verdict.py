"""What is said of a put: rule by rule, and all together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qemu_svm.rules import Rule, Severity
from qemu_svm.trace.phases import Step
from qemu_svm.trace.rules import rule


class RuleOutcome(StrEnum):
    """What a rule says of a put."""

    OK = "ok"
    VIOLATED = "violated"
    UNKNOWN = "unknown"
    DEPENDS = "depends"


class PutVerdict(StrEnum):
    """What all rules together say."""

    OK = "ok"
    VIOLATES = "violates"
    UNKNOWN = "cannot be judged"


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One rule on one put.

    :param line: where it shows in the log.
    :param note: what was seen, if that is not said by the rule itself.
    """

    rule: Rule
    outcome: RuleOutcome
    line: int
    note: str = ""

    @property
    def bad(self) -> bool:
        """Whether it counts."""
        return (
            self.outcome is RuleOutcome.VIOLATED and self.rule.trace_severity is not Severity.INFO
        )


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
    results: tuple[RuleResult, ...]
    run: Step | None = None
    superseded: int | None = None

    @property
    def verdict(self) -> PutVerdict:
        """Violated beats unknown beats ok."""
        if any(one.bad for one in self.results):
            return PutVerdict.VIOLATES
        if any(one.outcome is RuleOutcome.UNKNOWN for one in self.results):
            return PutVerdict.UNKNOWN
        return PutVerdict.OK


def result(rule_id: str, outcome: RuleOutcome, line: int, note: str = "") -> RuleResult:
    """Say what the rule with this id says."""
    return RuleResult(rule(rule_id), outcome, line, note)
