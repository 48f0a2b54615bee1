"""What ``why`` comes to: answers in the order of their likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from qemu_svm.results import Result
from qemu_svm.rules import Finding

if TYPE_CHECKING:
    from qemu_svm.diagnosis.dump import DumpMatch, VmcbDump
    from qemu_svm.diagnosis.facts import Facts
    from qemu_svm.machine import Machine


class Likelihood(StrEnum):
    """How sure an answer is."""

    CERTAIN = "certain"
    """The input shows it."""
    LIKELY = "likely"
    """It fits all that is known, and something supports it."""
    POSSIBLE = "possible"
    """It fits what is known; other causes fit as well."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    :param what: what happened.
    :param why: the cause.
    :param rule: id of the rule; empty if there is none.
    :param cves: CVE numbers of the bug.
    :param fixed_in: releases with the fix.
    :param do: what to do.
    :param evidence: what supports it: lines of the log, fields of the stream.
    :param line: of the log; None if it is not about one; 0 for a line given by itself.
    :param offset: in the stream; None if it has no place there.
    :param path: in the stream, as ``show`` takes it.
    """

    likelihood: Likelihood
    what: str
    why: str
    rule: str = ""
    cves: tuple[str, ...] = ()
    fixed_in: str = ""
    do: str = ""
    evidence: tuple[str, ...] = ()
    line: int | None = None
    offset: int | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class KernelSaid:
    """A kernel, and who said so.

    :param given: the option ``--from`` or ``--to``; else ``log``.
    """

    name: str
    given: str
    line: int | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Why(Result):
    """Answers, the likeliest first.

    :param log: path of the log, as given; None without one.
    :param facts: what the log and the lines show.
    :param happened: what was recognised, in words.
    :param collect: what to collect next.
    :param dumps: the VMCB dumps, and which VMCB of the stream each is.
    :param findings: the rules that the stream itself breaks or meets.
    """

    verb: ClassVar[str] = "why"
    log: str | None
    machine: Machine | None
    facts: Facts
    source: KernelSaid | None
    destination: KernelSaid | None
    answers: tuple[Answer, ...]
    happened: tuple[str, ...]
    collect: tuple[str, ...]
    dumps: tuple[tuple[VmcbDump, DumpMatch | None], ...]
    findings: tuple[Finding, ...]

    @property
    def found(self) -> bool:
        """Whether there is any answer."""
        return bool(self.answers)

    @property
    def sure(self) -> bool:
        """Whether the first answer is more than one possibility among others."""
        return self.found and self.answers[0].likelihood is not Likelihood.POSSIBLE
