"""Types shared by every table of rules and everything that reports a finding.

A leaf room: it imports no other room.  The rules themselves are in the rooms that
evaluate them (``model/rules.py``, ``trace/rules.py``, ``findings/``);
:mod:`qemu_svm.findings.rules` joins them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

BAD_VALUE = "find out what wrote this value; the source's kernel could not have run with it"
"""What to do about a field that no processor and no KVM accepts."""


class Severity(StrEnum):
    """How serious a finding is."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class RuleKind(StrEnum):
    """What a rule is about."""

    CHECK = "check"
    """A check of KVM: the ioctl fails if it is not met."""
    ORDER = "order"
    """The order of the ioctls of a restore."""
    CONSISTENCY = "consistency"
    """Parts of one stream that must agree."""
    ADVISORY = "advisory"
    """A known bug or limitation of a kernel or a QEMU."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing found in a stream.

    :param rule: id of the rule, or of the kind of damage.
    :param offset: byte offset in the stream; None if it has no single place.
    :param path: path of the field or section concerned, as ``show`` accepts it; or empty.
    :param do: what to do about it, if that is known.
    :param kernels: names of the profiles it applies to; empty if it is not about kernels.
    """

    severity: Severity
    rule: str
    message: str
    offset: int | None = None
    path: str = ""
    do: str = ""
    kernels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    :param fails_when: the condition, as the end of "fails when …".
    :param means: what follows; empty if either way is right.
    :param do: what to do about it; empty if there is nothing to do.
    :param source: where the rule comes from: a function of KVM or QEMU, a commit, a
        manual's section, or "measured".
    :param kernels: names of the profiles it applies to; empty for all, or if it is not
        about kernels.
    :param scope: the kernels in words, where profiles do not say it.
    :param change: the change of KVM that repaired it, in the table of kernels.
    :param field: path below the vCPU of what it looks at: ``nested.control.asid``.
    :param requires: of a rule about order: what must hold.
    :param in_trace: severity of a violation in a trace, where it differs.
    """

    id: str
    severity: Severity
    kind: RuleKind
    fails_when: str
    means: str
    do: str
    source: str
    kernels: tuple[str, ...] = ()
    scope: str = ""
    change: str = ""
    field: str = ""
    requires: str = ""
    in_trace: Severity | None = None

    @property
    def consequence(self) -> str:
        """``means``, also where nothing follows."""
        return self.means or "nothing: either way is right"

    @property
    def advice(self) -> str:
        """``do``, also where there is nothing to do."""
        return self.do or "nothing"

    @property
    def trace_severity(self) -> Severity:
        """Severity of a violation in a trace."""
        return self.in_trace or self.severity

    def finding(
        self,
        message: str,
        offset: int | None = None,
        *,
        path: str = "",
        kernels: tuple[str, ...] = (),
        severity: Severity | None = None,
    ) -> Finding:
        """Make a finding of this rule.

        :param severity: None for the rule's own.
        """
        return Finding(severity or self.severity, self.id, message, offset, path, self.do, kernels)
