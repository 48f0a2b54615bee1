"""One change of KVM's nested SVM: which kernels contain it and what it alters.

A change is in every mainline release from ``since`` on (and no more from ``until``
on), and in the stable updates named.  Nothing is concluded from a later date: an update
that is not listed does not have the change, unless its series began with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from types import MappingProxyType

from qemu_svm.model.kernels.release import Release


class Evidence(StrEnum):
    """How something about a kernel is known."""

    MEASURED = "measured"
    """Held against that kernel, running."""
    READ = "read"
    """Read in its source, its changelog or the announcement of a stable update."""
    DERIVED = "derived"
    """Concluded from commits and neighbouring kernels."""


class Side(StrEnum):
    """Whose kernel has to contain a change."""

    SOURCE = "source"
    """The one that saved."""
    DESTINATION = "destination"
    """The one that restores."""
    BOTH = "source and destination"


_NOTHING: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Change:
    """A change of behaviour.

    :param id: its name in this table.
    :param title: what KVM does once it is there.
    :param commits: mainline commits, shortened to 12 digits.
    :param since: the mainline release that has it first, such as ``5.16``.
    :param stable: stable updates that have it first, such as ``6.12.86``.
    :param broken: of a change that repairs a bug: the mainline release, and stable updates, that
        have the bug first; empty if all do that restore nested state.
    :param until: the mainline release in which it was reverted.
    :param reverted: stable updates in which it was reverted.
    :param cve: CVE numbers.
    :param side: whose kernel has to contain it.
    :param evidence: how the boundaries are known.
    :param source: where they were read or measured.
    :param gains: checks of KVM_SET_NESTED_STATE that it adds.
    :param loses: those that it removes.
    :param sregs: checks of KVM_SET_SREGS that it adds.
    :param sets: fields of the profile; those of its ``vmrun`` begin with ``vmrun.``.
    :param adds: fields of the profile that are sets: what joins them.
    """

    id: str
    title: str
    since: str
    commits: tuple[str, ...] = ()
    stable: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    until: str = ""
    reverted: tuple[str, ...] = ()
    cve: tuple[str, ...] = ()
    side: Side = Side.DESTINATION
    evidence: Evidence = Evidence.DERIVED
    source: str = ""
    gains: tuple[str, ...] = ()
    loses: tuple[str, ...] = ()
    sregs: tuple[str, ...] = ()
    sets: Mapping[str, object] = field(default_factory=lambda: _NOTHING)
    adds: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))

    def is_in(self, release: Release) -> bool:
        """Whether a kernel contains the change."""
        if self._reached(release, self.until, self.reverted):
            return False
        return self._reached(release, self.since, self.stable)

    def is_missed_by(self, release: Release) -> bool:
        """Whether a kernel has the bug that this change repairs."""
        has = not self.broken or self._reached(release, self.broken[0], self.broken[1:])
        return has and not self.is_in(release)

    def names(self, version: tuple[int, int, int]) -> bool:
        """Whether it is known of a release's series in which update the change came, if in any.

        Series before all that are listed did not get it.
        """
        listed = {numbers(one)[:2] for one in (*self.stable, self.since)}
        return version[:2] in listed or version[:2] < min(listed)

    @property
    def fixed_in(self) -> str:
        """The releases that have it first: ``6.1.175, 6.12.86, 7.1``."""
        return ", ".join(sorted((*self.stable, self.since), key=numbers))

    @property
    def boundaries(self) -> tuple[tuple[int, int, int], ...]:
        """Releases at which the answer of :meth:`is_in` changes."""
        mainline = [f"{one}.0" for one in (self.since, self.until) if one]
        return tuple(numbers(one) for one in (*mainline, *self.stable, *self.reverted))

    @staticmethod
    def _reached(release: Release, mainline: str, stable: tuple[str, ...]) -> bool:
        if mainline and release.numbers[:2] >= numbers(mainline)[:2]:
            return True
        updates = (numbers(one) for one in stable)
        return any(one[:2] == release.numbers[:2] and release.update >= one[2] for one in updates)

    @property
    def effective(self) -> bool:
        """Whether the model behaves differently with it."""
        return bool(self.gains or self.loses or self.sregs or self.sets or self.adds)


@cache
def numbers(version: str) -> tuple[int, int, int]:
    """The numbers of a version: ``6.12.86``, ``6.12``."""
    major, minor, update = (int(one) for one in f"{version}.0".split(".")[:3])
    return major, minor, update
