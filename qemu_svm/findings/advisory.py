"""A known bug of KVM: a rule, and how it is recognised in a stream, a trace or a host's facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from qemu_svm.findings.looks import Looks
from qemu_svm.machine import Vcpu
from qemu_svm.model.kernels.changes import Change, Side
from qemu_svm.model.kernels.release import Release
from qemu_svm.model.kernels.table import BY_ID
from qemu_svm.model.partial import can_run
from qemu_svm.model.profile import Profile
from qemu_svm.model.saved import Saved
from qemu_svm.rules import Rule, RuleKind, Severity
from qemu_svm.x86.cpuid import Cpuid


def _everywhere(_address: int, _size: int) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Case:
    """A saved vCPU and where it is to be restored.

    :param cpuid: of the vCPU at the destination.
    :param npt: the destination's host uses nested paging.
    :param backed: whether guest memory exists at (address, size).
    :param looks: what the stream's RAM holds.
    """

    vcpu: Vcpu
    saved: Saved
    cpuid: Cpuid = field(default_factory=Cpuid)
    npt: bool = True
    backed: Callable[[int, int], bool] = _everywhere
    looks: Looks = field(default_factory=Looks)

    @property
    def knows_registers(self) -> bool:
        """Whether the vCPU's own registers are in the input, as they are in every stream."""
        return can_run(self.vcpu)


@dataclass(frozen=True, slots=True)
class Met:
    """A vCPU that meets a rule.

    :param detail: what was seen, for the message.
    :param severity: of the finding; None for the rule's own.
    :param certain: what was seen says by itself that the source's kernel had the bug.
    """

    detail: str = ""
    severity: Severity | None = None
    certain: bool = False


@dataclass(frozen=True, slots=True)
class Advisory:
    """A rule, and what shows it.

    :param applies: whether a vCPU meets it; None if no stream shows it.
    :param common: ordinary streams meet it: it tells about kernels, not about this stream.
    :param host: whether a host meets it, by the parameters of its kvm_amd.
    :param avoided_by: a parameter of kvm_amd with which the host does not meet it.
    :param trace: rules of ``trace`` that show it.
    :param vmruns: the #VMEXIT that shows it in a log of VMRUNs, as ``vmruns --exit`` takes it.
    :param unseen: why nothing that is recorded shows it.
    """

    rule: Rule
    applies: Callable[[Case], bool | Met | None] | None = None
    common: bool = False
    host: Callable[[Mapping[str, str]], bool] | None = None
    avoided_by: str = ""
    trace: tuple[str, ...] = ()
    vmruns: str = ""
    unseen: str = ""

    @property
    def change(self) -> Change | None:
        """The change that repaired it, if the table of kernels has it."""
        return BY_ID.get(self.rule.change)

    @property
    def side(self) -> Side:
        """Whose kernel has to be without the bug."""
        return Side.DESTINATION if self.change is None else self.change.side

    @property
    def shown_by(self) -> tuple[str, ...]:
        """What shows it: ``stream``, ``host``, rules of ``trace``, an exit in ``vmruns``."""
        stream = ("stream",) if self.applies is not None else ()
        host = ("host",) if self.host is not None else ()
        runs = (f"vmruns --exit {self.vmruns}",) if self.vmruns else ()
        return (*stream, *host, *(f"trace {one}" for one in self.trace), *runs)

    def met(self, case: Case) -> Met | None:
        """What of it a vCPU meets; None if nothing."""
        found = self.applies(case) if self.applies is not None else None
        return found if isinstance(found, Met) else Met() if found else None

    def concerns(self, kernel: Profile) -> bool:
        """Whether a kernel has the bug; a proposal has none that a change repaired."""
        if self.change is None:
            return not self.rule.kernels or kernel.row in self.rule.kernels
        return any(kernel.numbers) and _missed(self.change.id, *kernel.numbers)

    def on_host(self, parameters: Mapping[str, str], kernel: Profile) -> bool:
        """Whether a host with these parameters of kvm_amd meets it."""
        return self.host is not None and self.host(parameters) and self.concerns(kernel)


@lru_cache(maxsize=1 << 14)  # asked about every stream of a survey
def _missed(change: str, major: int, minor: int, update: int) -> bool:
    return BY_ID[change].is_missed_by(Release(major, minor, update))


def repaired(number: str, severity: Severity, change: str, when: str, means: str) -> Rule:
    """Return the rule about a bug that a change of the table repaired."""
    fixed = BY_ID[change]
    named = [*fixed.cve, *(f"commit {one}" for one in fixed.commits)]
    do = {
        Side.SOURCE: "save again on a kernel with the fix",
        Side.DESTINATION: "use a kernel with the fix",
        Side.BOTH: "use kernels with the fix on both sides",
    }[fixed.side]
    return Rule(
        number, severity, RuleKind.ADVISORY, when, means, f"{do}: {fixed.fixed_in}",
        ", ".join(named) or fixed.source,
        scope=f"without the fix ({fixed.fixed_in})", change=change,
    )  # fmt: skip
