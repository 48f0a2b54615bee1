"""What the verbs that read a stream come to: frozen values, the same for text and JSON.

Nothing that these are made of is imported here: each verb makes one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from qemu_svm.results import Result

if TYPE_CHECKING:
    from qemu_svm.errors import StreamError
    from qemu_svm.findings.check import Report
    from qemu_svm.findings.compat import Compatibility
    from qemu_svm.findings.diff import Comparison, Difference
    from qemu_svm.findings.masks import Mask
    from qemu_svm.findings.plans import PlansApart
    from qemu_svm.findings.puts import PutComparison
    from qemu_svm.findings.ram_diff import RamDiff
    from qemu_svm.findings.recorded import RecordedDifference
    from qemu_svm.findings.verdict import Judgement, Verdict
    from qemu_svm.machine import Machine
    from qemu_svm.machine.paths import Node
    from qemu_svm.machine.recorded import RecordedPut
    from qemu_svm.model.kernels.changes import Change
    from qemu_svm.model.simulate import Simulation
    from qemu_svm.rules import Finding, Rule
    from qemu_svm.stream import Stream
    from qemu_svm.stream.ram.coverage import BlockCoverage
    from qemu_svm.stream.ram.read import Ram

Span = tuple[int, int]
"""First byte and end of a part of a RAM block."""


@dataclass(frozen=True, slots=True, repr=False)
class CheckReport(Result):
    """Which kernels accept a stream's nested state, and what they would meet."""

    verb: ClassVar[str] = "check"
    machine: Machine
    report: Report

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The rules that the stream meets or breaks."""
        return self.report.findings

    @property
    def verdicts(self) -> Mapping[int, Mapping[str, Judgement]]:
        """Each vCPU's verdict, by the vCPU's index and the name of the kernel."""
        return self.report.verdicts


@dataclass(frozen=True, slots=True, repr=False)
class SimulationReport(Result):
    """A restore in the model, once for each kernel.

    :param plan: as given.
    :param judgements: one for each of ``simulations``.
    :param against: a second plan beside the first; of one kernel only.
    :param recorded: of a recorded put: the first difference between KVM's answers and the
        model's, one for each of ``simulations``, or None; empty for any other plan.
    :param vcpu: CPU index.
    """

    verb: ClassVar[str] = "simulate"
    machine: Machine
    plan: str
    simulations: tuple[Simulation, ...]
    judgements: tuple[Judgement, ...]
    against: PlansApart | None = None
    recorded: tuple[RecordedDifference | None, ...] = ()
    vcpu: int = 0

    @property
    def put(self) -> RecordedPut | None:
        """The recorded put that was simulated; None if the plan is another one."""
        if not self.recorded:
            return None
        vcpu = self.machine.vcpu(self.vcpu)
        return vcpu.put

    @property
    def verdict(self) -> Verdict:
        """The verdict; of several, the worst: ``open right refused wrong broken``."""
        from qemu_svm.findings.verdict import Verdict

        badness = (Verdict.OPEN, Verdict.RIGHT, Verdict.REFUSED, Verdict.WRONG, Verdict.BROKEN)
        judged = [one.verdict for one in self.judgements]
        if self.against is not None:
            judged.append(self.against.judgement.verdict)
        return max(judged, key=badness.index)


@dataclass(frozen=True, slots=True, repr=False)
class Shown(Result):
    """One part of a stream.

    :param raw: its bytes; empty if they are not contiguous in the stream.
    """

    verb: ClassVar[str] = "show"
    place: Node
    raw: bytes


@dataclass(frozen=True, slots=True, repr=False)
class RamReport(Result):
    """What became of each page of RAM.

    :param coverage: one for each block.
    :param chosen: numbers of the blocks that were asked for.
    :param span: the bytes of each block that were asked for; None for all.
    :param files: names of the files written, by the number of the block.
    """

    verb: ClassVar[str] = "ram"
    stream: Stream
    ram: Ram
    coverage: tuple[BlockCoverage, ...]
    chosen: tuple[int, ...]
    span: Span | None = None
    files: Mapping[int, str] = field(default_factory=dict)

    @property
    def problems(self) -> tuple[StreamError, ...]:
        """What is damaged or missing, of the stream and of its RAM."""
        from qemu_svm.stream.ram.problems import all_problems

        return all_problems(self.stream, self.ram)

    @property
    def complete(self) -> bool:
        """Whether stream and RAM are whole."""
        from qemu_svm.stream.ram.problems import is_complete

        return is_complete(self.stream, self.ram)

    @property
    def pages_sent(self) -> int:
        """Pages that were sent, of the bytes of the blocks that were asked for."""
        from qemu_svm.stream.ram.extract import pages_of

        return sum(
            self.coverage[number].final.tally(*pages_of(self.ram, number, self.span)).sent
            for number in self.chosen
        )

    def with_files(self, files: Mapping[int, str]) -> RamReport:
        """Return the report with the names of the files that were written."""
        return replace(self, files=files)


@dataclass(frozen=True, slots=True, repr=False)
class DiffReport(Result):
    """What differs between two streams.

    :param pages: differences of RAM; None if it was not compared.
    :param puts: of each vCPU, the put of a recording held against the other side.
    """

    verb: ClassVar[str] = "diff"
    a: Machine
    b: Machine
    comparison: Comparison
    pages: RamDiff | None = None
    puts: tuple[PutComparison, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs but what is masked, and the order of two puts."""
        puts = any(one.differences for one in self.puts)
        alike = not self.comparison.counting and not puts
        return alike and (self.pages is None or self.pages.same)

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The differences that no mask covers."""
        return self.comparison.counting


@dataclass(frozen=True, slots=True, repr=False)
class CompatReport(Result):
    """Whether a QEMU would accept the sections of a stream.

    :param target: the QEMU, as given.
    """

    verb: ClassVar[str] = "compat"
    machine: Machine
    compatibility: Compatibility
    target: str

    @property
    def accepted(self) -> bool:
        """Whether nothing was found that makes this QEMU refuse the stream."""
        return self.compatibility.accepted


@dataclass(frozen=True, slots=True, repr=False)
class RuleList(Result):
    """Rules of ``check``; a single one is explained in full.

    :param changes: changes of KVM that were asked for; the rules are those about them.
    """

    verb: ClassVar[str] = "check_rules"
    rules: tuple[Rule, ...]
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class MaskList(Result):
    """Masks of ``diff``."""

    verb: ClassVar[str] = "diff_masks"
    masks: tuple[Mask, ...]


@dataclass(frozen=True, slots=True, repr=False)
class RoundTrip(Result):
    """What a stream lost or changed on its way through a QEMU.

    :param version: of that QEMU.
    """

    verb: ClassVar[str] = "roundtrip"
    diff: DiffReport
    version: str


@dataclass(frozen=True, slots=True, repr=False)
class RestoreRefusal(Result):
    """A stream that QEMU refused.

    :param path: of the stream, as given.
    :param reason: QEMU's own words, line by line.
    :param findings: what the stream holds at the place that QEMU complains about.
    """

    verb: ClassVar[str] = "restore_refused"
    path: str
    reason: tuple[str, ...]
    findings: tuple[Finding, ...]
