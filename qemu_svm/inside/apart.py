"""Two looks into kernel memory compared, or one with a stream: what would be saved now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from qemu_svm.inside.looking import InsideLook, State
from qemu_svm.inside.saved import apart, saved_in, would_save
from qemu_svm.inside.view import Inside
from qemu_svm.machine import Machine
from qemu_svm.results import Result

RESTLESS = frozenset({"exits", "cpu", "mode", "requests", "arch.regs_avail", "arch.regs_dirty"})
"""Members that say how far a vCPU has run, not what state it is in."""
_CLEAN = "*.control.clean"
_WHY = "how far the vCPU has run, not its state"
_ASKED = "asked for with --mask"


@dataclass(frozen=True, slots=True)
class Apart:
    """One member that differs.

    :param vcpu: ``vcpu0``; ``vm1.vcpu0`` in a second VM of the process.
    :param a, b: its values; None if one side does not have it.
    :param mask: why it does not count; None if it does.
    """

    vcpu: str
    name: str
    a: Any
    b: Any
    mask: str | None = None

    @property
    def path(self) -> str:
        """``vcpu0.nested.save.cr3``."""
        return f"{self.vcpu}.{self.name}"


@dataclass(frozen=True, slots=True, repr=False)
class InsideDiff(Result):
    """Two sides, each a look or a stream, by vCPU.

    :param moving: vCPUs that ran while they were read.
    """

    verb: ClassVar[str] = "diff_inside"
    sides: tuple[InsideLook | Machine, InsideLook | Machine]
    differences: tuple[Apart, ...]
    moving: tuple[str, ...]

    @property
    def counting(self) -> tuple[Apart, ...]:
        """Differences that no mask covers."""
        return tuple(one for one in self.differences if one.mask is None)

    @property
    def same(self) -> bool:
        """Whether nothing differs that counts."""
        return not self.counting

    @property
    def saved(self) -> bool:
        """Whether one side is a stream, so that what would be saved was compared."""
        return any(isinstance(side, Machine) for side in self.sides)


def compare(
    a: InsideLook | Machine,
    b: InsideLook | Machine,
    patterns: Sequence[str] = (),
) -> InsideDiff:
    """Compare two looks, or one with a stream.

    :param patterns: paths that do not count, with all below them; ``*`` is any text.
    """
    saved = isinstance(a, Machine) or isinstance(b, Machine)
    ours, theirs = (dict(_vcpus(one, saved=saved)) for one in (a, b))
    found = []
    for vcpu in dict.fromkeys((*ours, *theirs)):
        if vcpu not in ours or vcpu not in theirs:
            there = "present"
            found.append(Apart(vcpu, "vcpu", there if vcpu in ours else None,
                               there if vcpu in theirs else None))  # fmt: skip
            continue
        left, right = ours[vcpu], theirs[vcpu]
        for name in _names(left, right, saved=saved):
            mask = _mask(f"{vcpu}.{name}", name, patterns)
            found.append(Apart(vcpu, name, left.get(name), right.get(name), mask))
    moving = tuple(
        _name(one.vm, one.id)
        for side in (a, b) if isinstance(side, InsideLook)
        for one in side.vcpus if one.state in (State.RUNNING, State.CHANGING)
    )  # fmt: skip
    return InsideDiff((a, b), tuple(found), tuple(dict.fromkeys(moving)))


def _vcpus(side: InsideLook | Machine, *, saved: bool) -> Iterator[tuple[str, Inside]]:
    if isinstance(side, Machine):
        for vcpu in side.vcpus:
            yield _name(0, vcpu.index), saved_in(vcpu)
        return
    for one in side.vcpus:
        if one.values:
            yield _name(one.vm, one.id), would_save(one.values) if saved else one.values


def _name(vm: int, index: int) -> str:
    return f"vm{vm}.vcpu{index}" if vm else f"vcpu{index}"


def _names(a: Inside, b: Inside, *, saved: bool) -> Iterator[str]:
    if saved:  # a kernel's memory and a stream have not the same members
        yield from apart(a, b)
        return
    for name in dict.fromkeys((*a, *b)):
        if a.get(name) != b.get(name):
            yield name


def _mask(path: str, name: str, patterns: Sequence[str]) -> str | None:
    if any(fnmatchcase(path, one) or fnmatchcase(path, f"{one}.*") for one in patterns):
        return _ASKED
    return _WHY if name in RESTLESS or fnmatchcase(name, _CLEAN) else None
