"""The kernels of source and destination, and what follows for a rule."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from qemu_svm.findings.advisories import ADVISORIES, DATA_ORDERS
from qemu_svm.findings.fixes import CHANGE_OF, FIXES
from qemu_svm.findings.rules import RULES
from qemu_svm.model.kernels.changes import Change, Side
from qemu_svm.model.kernels.changes import numbers as numbers_of
from qemu_svm.model.profile import Profile
from qemu_svm.model.profiles import PROFILES

_ADVISED = {one.rule.id: one.rule for one in (*ADVISORIES, *DATA_ORDERS)}


@dataclass(slots=True)
class Kernels:
    """Those that are known.

    :param source: the one that saved; None if it is not known.
    :param destination: the one that restores; None if it is not known.
    """

    source: Profile | None
    destination: Profile | None

    def concerned(self, rule: str) -> bool | None:
        """Whether the kernel that restores (or saved) makes the check or has the bug."""
        fix = next((one for one in FIXES if one.rule.id == rule), None)
        if fix is not None:
            sides = []
            if fix.side is not Side.SOURCE:
                sides.append(self.destination)
            if fix.side is not Side.DESTINATION:
                sides.append(self.source)
            known = [fix.concerns(kernel) for kernel in sides if kernel is not None]
            if any(known):
                return True
            return False if len(known) == len(sides) else None
        kernel = self.destination
        # An L1 with LMA and without LME is refused where that is checked, fatal where it is not.
        if kernel is not None and rule != "SV-18":
            if rule in _gated():
                return rule in kernel.checks
            advisory = _ADVISED.get(rule)
            if advisory is not None and advisory.kernels:
                return kernel.row in advisory.kernels
        return None

    def in_span(self, since: str, until: str) -> bool:
        """Whether the destination may be one of the releases from ``since`` to ``until``."""
        if self.destination is None or not any(self.destination.numbers):
            return True
        numbers = self.destination.numbers
        if since and numbers < numbers_of(since):
            return False
        return not until or numbers < numbers_of(until)

    def makes_newly(self, rule: str) -> bool:
        """Whether the destination makes a check that the source does not.

        R-05, which is about EFER.SVME, counts whatever the source: every guest with nested
        state has SVME.
        """
        to, source = self.destination, self.source
        if to is None or rule not in to.checks or not change_of(rule):
            return False
        return rule == "R-05" or (source is not None and rule not in source.checks)


@cache
def _gated() -> frozenset[str]:
    # Checks that some kernel makes and another may not.
    return frozenset().union(*(kernel.checks for kernel in PROFILES.values()))


def change_of(rule: str) -> str:
    """Id of the change of KVM that a rule is about; empty if there is none."""
    known = RULES.get(rule)
    return (known.change if known is not None else "") or CHANGE_OF.get(rule, "")


def is_bug(rule: str) -> bool:
    """Whether a release repairs it; a check is no bug, but for those that were wrong or late."""
    return rule.startswith(("K-", "A-", "O-")) or rule in ("SV-18", "C-06")


def repaired(change: Change) -> str:
    """Releases that repair it first; a check that was wrong is repaired by its revert."""
    if change.until or change.reverted:
        return ", ".join(one for one in (*change.reverted, change.until) if one)
    return change.fixed_in


def since_words(change: Change) -> str:
    """Releases that have it first."""
    return ", ".join((*change.stable, change.since))
