"""Guesses the version of QEMU from the ioctls in a log and their order.

A log does not contain the version; but the order of a put changed in 5.1 and later,
and so did the ioctls that QEMU uses.  Each clue bounds the version from below or
above.  A distribution may have backported a change, and another program may look
like QEMU: the result is a guess.

Source: QEMU ``target/i386/kvm/kvm.c``, ``accel/kvm/kvm-all.c`` and
``hw/i386/kvm/apic.c`` (5.2, 7.2, 10.0, 10.2), the patches named below, and logs
of 5.2, 7.2, 10.0 and 11.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qemu_svm.trace.phases import (
    CPUID,
    DEBUGREGS,
    LAPIC,
    NESTED,
    SREGS,
    Phase,
    PhaseKind,
)

Version = tuple[int, int]

_TPR = "KVM_TPR_ACCESS_REPORTING"
_ORDER = (
    ("KVM_SET_REGS",),
    ("KVM_SET_XSAVE", "KVM_SET_FPU"),
    ("KVM_SET_XCRS",),
    ("KVM_SET_MSRS",),
    ("KVM_SET_VCPU_EVENTS",),
    ("KVM_SET_MP_STATE",),
    ("KVM_SET_MSRS",),
    ("KVM_SET_DEBUGREGS",),
)
_OPTIONAL = frozenset({"KVM_SET_XCRS", "KVM_SET_MP_STATE"})


@dataclass(frozen=True, slots=True)
class Clue:
    """An observation that bounds the version."""

    seen: str
    low: Version | None = None
    high: Version | None = None


@dataclass(frozen=True, slots=True)
class Guess:
    """Bounds of the version; both None if there are no clues.

    If ``low`` is above ``high``, the clues contradict each other.
    """

    clues: tuple[Clue, ...]
    low: Version | None = None
    high: Version | None = None

    @property
    def contradictory(self) -> bool:
        """Whether no version matches all clues."""
        return self.low is not None and self.high is not None and self.low > self.high

    def words(self) -> str:
        """Return the guess in words: ``7.0 to 8.0``."""
        if self.contradictory:
            return "no known version: the order is QEMU's, but the clues contradict each other"
        if not self.clues:
            return "not QEMU's order"
        if self.low is None or self.high is None:
            return f"{_text(self.low)} or later" if self.low else f"{_text(self.high)} or before"
        return f"{_text(self.low)} to {_text(self.high)}"


_SSP = "KVM_SET_ONE_REG"
_CLUES = {
    "sregs-first": Clue("SREGS come before NESTED_STATE", low=(5, 1)),
    "nested-first": Clue("NESTED_STATE comes before SREGS", (4, 1), (5, 0)),
    "sregs2": Clue("SREGS2 is used", low=(7, 0)),
    "xsave2": Clue("GET_XSAVE2 is used", low=(7, 0)),
    "xen": Clue("Xen attributes are set", low=(8, 0)),
    "stats": Clue("GET_STATS_FD when a vCPU is created", low=(8, 1)),
    "no-stats": Clue("no GET_STATS_FD when a vCPU is created", high=(8, 0)),
    "guest-debug": Clue("a put ends with SET_GUEST_DEBUG", high=(9, 2)),
    "tpr-first": Clue("a load sets TPR reporting before the LAPIC", high=(11, 0)),
    "lapic-first": Clue("a load sets the LAPIC before TPR reporting", low=(11, 0)),
    "ssp": Clue("a put has SET_ONE_REG (shadow stack pointer)", low=(11, 0)),
}
"""5.1 moved SREGS before nested state (July 2020), SREGS2 came with 7.0, "kvm:
reuse per-vcpu stats fd to avoid vcpu interruption" (June 2023) with 8.1; 11.x
saves ``apic`` before ``kvm-tpr-opt``."""


def guess(vcpus: Sequence[Sequence[Phase]], migrated: Sequence[int | None]) -> Guess:
    """Guess the version from all vCPUs' phases.

    :param migrated: for each vCPU, the phase that puts a loaded state, if any.
    """
    names: set[str] = set()
    likely = False
    for phases, loaded in zip(vcpus, migrated, strict=True):
        for phase in phases:
            if phase.kind in (PhaseKind.FULL, PhaseKind.RESET):
                likely = likely or _like_qemu(phase)
                names.update(_put_clues(phase))
            elif phase.kind is PhaseKind.CREATION and phase.has(CPUID):
                names.add("stats" if phase.has(frozenset({"KVM_GET_STATS_FD"})) else "no-stats")
            elif phase.kind is PhaseKind.GET and phase.has(frozenset({"KVM_GET_XSAVE2"})):
                names.add("xsave2")
        if loaded:
            names.update(_load_clues(phases[loaded - 1]))
    if not likely:
        return Guess(())
    clues = tuple(clue for name, clue in _CLUES.items() if name in names)
    return Guess(
        clues,
        max((clue.low for clue in clues if clue.low), default=None),
        min((clue.high for clue in clues if clue.high), default=None),
    )


def _like_qemu(put: Phase) -> bool:
    known = {name for choice in _ORDER for name in choice}
    have = [step.name for step in put.steps if step.name in known]
    for choice in _ORDER:
        if have and have[0] in choice:
            have.pop(0)
        elif not _OPTIONAL.intersection(choice) and choice != ("KVM_SET_MSRS",):
            return False
    return not have


def _put_clues(put: Phase) -> set[str]:
    order = [step.name for step in put.steps]
    found = set()
    sregs = next((at for at, name in enumerate(order) if name in SREGS), None)
    if sregs is not None and NESTED in order:
        found.add("sregs-first" if sregs < order.index(NESTED) else "nested-first")
    if "KVM_SET_SREGS2" in order:
        found.add("sregs2")
    if "KVM_XEN_VCPU_SET_ATTR" in order:
        found.add("xen")
    if _SSP in order:
        found.add("ssp")
    if order[-1] == "KVM_SET_GUEST_DEBUG" and any(name in DEBUGREGS for name in order):
        found.add("guest-debug")
    return found


def _load_clues(load: Phase) -> set[str]:
    order = [step.name for step in load.steps]
    lapic = next((at for at, name in enumerate(order) if name in LAPIC), None)
    if load.kind is not PhaseKind.APIC or lapic is None or _TPR not in order:
        return set()
    return {"tpr-first" if order.index(_TPR) < lapic else "lapic-first"}


def _text(version: Version | None) -> str:
    return "" if version is None else f"{version[0]}.{version[1]}"
