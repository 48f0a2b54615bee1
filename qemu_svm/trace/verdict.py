"""The verdict on a put of nested state: rule by rule, and overall."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qemu_svm.rules import Rule, Severity
from qemu_svm.trace.phases import Step
from qemu_svm.trace.rules import rule


class RuleOutcome(StrEnum):
    """Result of one rule for one put."""

    OK = "ok"
    VIOLATED = "violated"
    UNKNOWN = "unknown"
    DEPENDS = "depends"


class PutVerdict(StrEnum):
    """Result of all rules for one put."""

    OK = "ok"
    VIOLATES = "violates"
    UNKNOWN = "cannot be judged"


class Whose(StrEnum):
    """Whose registers a put has, as far as the put itself shows."""

    L1 = "L1's"
    L2 = "L2's"
    MIXED = "partly L1's"


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One rule applied to one put.

    :param line: of the log where it shows.
    :param note: details that the rule's own words do not have.
    """

    rule: Rule
    outcome: RuleOutcome
    line: int
    note: str = ""

    @property
    def bad(self) -> bool:
        """Whether it makes the put violate the rules."""
        return (
            self.outcome is RuleOutcome.VIOLATED and self.rule.trace_severity is not Severity.INFO
        )


@dataclass(frozen=True, slots=True)
class Content:
    """What one call of a put sets.

    :param step: the call, which has data.
    :param whose: of SREGS and REGS in guest mode: whose registers they are, as far as the put
        shows.
    """

    step: Step
    whose: Whose | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """A put of nested state and its verdict.

    :param phase: number of the vCPU's phase.
    :param order: the ioctls of this put up to what ended it, without reads and those of
        other devices.
    :param run: the KVM_RUN that used the state, if any.
    :param superseded: line of the next put of nested state, if that came before any KVM_RUN.
    :param contents: the calls whose data the log has, from the KVM_RUN before it on.
    """

    phase: int
    line: int
    order: tuple[Step, ...]
    results: tuple[RuleResult, ...]
    run: Step | None = None
    superseded: int | None = None
    contents: tuple[Content, ...] = ()

    @property
    def verdict(self) -> PutVerdict:
        """Violated, else unknown, else ok."""
        if any(one.bad for one in self.results):
            return PutVerdict.VIOLATES
        if any(one.outcome is RuleOutcome.UNKNOWN for one in self.results):
            return PutVerdict.UNKNOWN
        return PutVerdict.OK


def result(rule_id: str, outcome: RuleOutcome, line: int, note: str = "") -> RuleResult:
    """Make the result of the rule with this id."""
    return RuleResult(rule(rule_id), outcome, line, note)
