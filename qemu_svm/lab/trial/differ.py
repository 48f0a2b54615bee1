"""Where two kernels differ at the same plan, and where they are the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from qemu_svm.inside.view import page as vmcb
from qemu_svm.model.kvm.vcpu import RunEnd
from qemu_svm.model.saved import Saved
from qemu_svm.nested.layout import VMCB_SIZE
from qemu_svm.replay.compare import INSIDE
from qemu_svm.replay.conform import Guest
from qemu_svm.replay.job import ReplayJob, ReplayResult, ReplayStep

IOCTLS = {
    "cpuid": "KVM_SET_CPUID2",
    "sregs": "KVM_SET_SREGS",
    "sregs2": "KVM_SET_SREGS2",
    "nested": "KVM_SET_NESTED_STATE",
    "regs": "KVM_SET_REGS",
    "msrs": "KVM_SET_MSRS",
    "events": "KVM_SET_VCPU_EVENTS",
    "debugregs": "KVM_SET_DEBUGREGS",
    "mpstate": "KVM_SET_MP_STATE",
    "get": "KVM_GET_NESTED_STATE",
    "run": "KVM_RUN",
    "lapic": "KVM_SET_LAPIC",
    "xsave": "KVM_SET_XSAVE",
    "xcrs": "KVM_SET_XCRS",
    "tsc_khz": "KVM_SET_TSC_KHZ",
}
"""The ioctl of each step of a plan."""

_RESTLESS = (
    *("cpu", "mode", "exits", "arch.regs_avail", "arch.regs_dirty"),
    "arch.*tsc_offset",
    *("*.control.tsc_offset", "*.control.asid", "*.control.exit_info_*"),
    *("*.control.exit_int_info*", "*.control.insn_*", "*.control.tlb_ctl"),
)
"""Members that differ between two runs of the same kernel."""
_REQUESTS = INSIDE + "requests"
_MATTER = sum(1 << 8 + number for number in (2, 3, 5, 24, 26, 27))
"""The requests of ``vcpu->requests`` that do not come from timers and clocks: a triple fault,
MMU_SYNC, LOAD_MMU_PGD, GET_NESTED_STATE_PAGES, TLB_FLUSH_CURRENT and TLB_FLUSH_GUEST (Linux
``arch/x86/include/asm/kvm_host.h``, ``KVM_ARCH_REQ``, the same from 5.10 to 7.2)."""
_ALIKE = 0.5  # of the names of two differences, if they are two of one kind


@dataclass(frozen=True, slots=True)
class Change:
    """One part of the state.

    :param name: ``errno``, ``run``, ``end``, a part of the state, ``vmcb12.FIELD`` for what L1
        finds in its memory after a run, ``inside.MEMBER``.
    :param owner: whose register the value with the patch is: ``L1's``, ``L2's``, or empty.
    """

    name: str
    without: Any
    with_patch: Any
    owner: str = ""

    @property
    def is_inside(self) -> bool:
        """Whether only the kernel's memory has it."""
        return self.name.startswith(INSIDE)


@dataclass(frozen=True, slots=True)
class Difference:
    """The first step at which a plan differs.

    :param plan: up to the last step that is told of.
    :param plans: how many plans differ in the same way; ``plan`` is the shortest of them.
    :param shown: the later step at which ioctls differ too, if only the kernel's memory
        differs at this one.
    :param until: number and text of the later step at which nothing of this differs any more.
    """

    guest: str
    plan: str
    step: int
    text: str
    changes: tuple[Change, ...]
    plans: int = 1
    shown: Difference | None = None
    until: tuple[int, str] | None = None

    @property
    def inside_only(self) -> bool:
        """Whether no ioctl shows it at this step."""
        return all(one.is_inside for one in self.changes)

    @property
    def outside(self) -> bool:
        """Whether an ioctl shows it, at this step or at a later one."""
        return not self.inside_only or self.shown is not None

    @property
    def hung(self) -> bool:
        """Whether a run was ended by its time limit on one side."""
        return any(
            change.name == "run" and RunEnd.HANG in (change.without, change.with_patch)
            for change in self.changes
        )

    @property
    def names(self) -> frozenset[str]:
        """What differs."""
        return frozenset(change.name for change in self.changes)

    @property
    def order(self) -> tuple[int, int, int]:
        """For sorting: what ioctls show before what they do not, early steps, short plans."""
        return (self.inside_only + (not self.outside), self.step, len(self.plan))

    def is_like(self, other: Difference) -> bool:
        """Whether both are of one kind: the same ioctl, and mostly the same parts."""
        if _ioctl(self) != _ioctl(other) or self.inside_only != other.inside_only:
            return False
        return len(self.names & other.names) >= _ALIKE * len(self.names | other.names)


@dataclass
class Tally:
    """What was compared.

    :param steps: ioctls and runs.
    :param seen: groups of the state that were compared; ``differing``: those that differed
        at any step of any plan.
    """

    steps: int = 0
    seen: set[str] = field(default_factory=set)
    differing: set[str] = field(default_factory=set)

    @property
    def same(self) -> list[str]:
        """Groups that never differed."""
        return sorted(self.seen - self.differing)


def difference(
    guest: Guest, job: ReplayJob, one: ReplayResult, other: ReplayResult, tally: Tally
) -> Difference | None:
    """Return the first step at which the kernel with the patch differs.

    :param one, other: what the kernels without and with it answered.
    """
    first: Difference | None = None
    hung = False
    for mine, theirs in zip(one.steps, other.steps, strict=False):
        hung = any(step.run and step.run.result == RunEnd.HANG for step in (mine, theirs))
        changes = tuple(_changes(guest.saved, mine, theirs))
        if hung:  # where it was stopped is an accident
            changes = tuple(change for change in changes if change.name in ("errno", "run"))
        tally.steps += 1
        tally.seen |= {_group(name) for name in _names(mine, theirs) if not _is_restless(name)}
        tally.differing |= {_group(change.name) for change in changes}
        here = Difference(guest.name, _cut(job, mine.number), mine.number, mine.step.text, changes)
        first = _followed(first, here) if first else here if changes else None
        if hung:
            break
    if first is not None or hung or one.end == other.end or one.host or other.host:
        return first
    number = min(len(one.steps), len(other.steps)) + 1
    tally.differing.add("end")
    end = Change("end", one.end, other.end)
    return Difference(guest.name, _cut(job, number), number, text_of(job, number), (end,))


def runs_again(plan: str) -> bool:
    """Whether L1 executes VMRUN in a plan: in a run after the one that ended with its exit."""
    return "run,run" in plan


def text_of(job: ReplayJob, number: int) -> str:
    """Return a step of a plan as text; of the one after the last, ``end``."""
    return job.steps[number - 1].text if number <= len(job.steps) else "end"


def _followed(first: Difference, here: Difference) -> Difference:
    # What a later step adds to the first difference.
    if not first.inside_only or first.shown is not None:
        return first
    outside = tuple(change for change in here.changes if not change.is_inside)
    if outside:
        return replace(first, plan=here.plan, shown=replace(here, changes=outside))
    if first.until is None and first.names.isdisjoint(here.names):
        return replace(first, until=(here.step, here.text))
    return first


def _cut(job: ReplayJob, number: int) -> str:
    return ",".join(step.text for step in job.steps[:number])


def _ioctl(one: Difference) -> str:
    return one.text.partition(":")[0]


def _group(name: str) -> str:
    # The part of the state that a name belongs to, as the report names it.
    bare = name.removeprefix(INSIDE)
    if name == bare:
        return bare.partition(".")[0]
    parts = bare.split(".")
    return INSIDE + (".".join(parts[:2]) if len(parts) > 2 else parts[0] if parts[1:] else bare)


def _is_restless(name: str) -> bool:
    member = name.removeprefix(INSIDE)
    return member != name and any(fnmatchcase(member, pattern) for pattern in _RESTLESS)


def _names(one: ReplayStep, other: ReplayStep) -> Iterator[str]:
    yield "errno" if one.run is None else "run"
    yield from _vmcb12(one).keys() & _vmcb12(other).keys()
    yield from one.state.keys() & other.state.keys()
    yield from (INSIDE + name for name in (one.inside or {}).keys() & (other.inside or {}).keys())


def _changes(saved: Saved, one: ReplayStep, other: ReplayStep) -> Iterator[Change]:
    if one.errno != other.errno:
        yield Change("errno", one.errno, other.errno)
    if one.run is not None and other.run is not None and one.run.result != other.run.result:
        yield Change("run", one.run.result, other.run.result)
    seen, differs = _vmcb12(one), _vmcb12(other)
    for name in sorted(seen.keys() & differs.keys()):
        if seen[name] != differs[name]:
            yield _change(saved, name, seen[name], differs[name])
    for name in sorted(one.state.keys() | other.state.keys()):
        if one.state.get(name) != other.state.get(name):
            yield _change(saved, name, one.state.get(name), other.state.get(name))
    mine, theirs = _settled(one), _settled(other)
    for name in sorted(mine.keys() & theirs.keys()):
        if mine[name] != theirs[name] and not _is_restless(name):
            yield _change(saved, name, mine[name], theirs[name])


def _vmcb12(step: ReplayStep) -> dict[str, Any]:
    # What L1 has in its memory after a run: exit code and L2's registers.
    page = b"" if step.run is None else step.run.vmcb12
    return vmcb(page, "vmcb12") if len(page) == VMCB_SIZE else {}


def _settled(step: ReplayStep) -> dict[str, Any]:
    # What the kernel's memory has, without requests that come and go by themselves.
    found = {INSIDE + name: value for name, value in (step.inside or {}).items()}
    if _REQUESTS in found:
        found[_REQUESTS] &= _MATTER
    return found


def _change(saved: Saved, name: str, without: Any, with_patch: Any) -> Change:
    return Change(name, without, with_patch, _owner(saved, name.rpartition(".")[2], with_patch))


def _owner(saved: Saved, register: str, value: Any) -> str:
    # Whose register it is, if L1's and L2's are not the same; 0 may be anybody's.
    l1, l2 = saved.l1(), saved.sregs
    if register not in l1 or not isinstance(value, int) or not value:
        return ""
    if register in l2:
        ours = l2.content(register)
    elif register in saved.regs:
        ours = saved.regs[register]
    else:
        return ""
    theirs = l1.content(register)
    if ours == theirs or value not in (ours, theirs):
        return ""
    return "L1's" if value == theirs else "L2's"


def kinds(found: Sequence[tuple[Guest, ReplayJob, Difference]]) -> list[
    list[tuple[Guest, ReplayJob, Difference]]
]:  # fmt: skip
    """Sort differences into kinds, each with its shortest plan first."""
    made: list[list[tuple[Guest, ReplayJob, Difference]]] = []
    for entry in sorted(found, key=lambda entry: entry[2].order):
        kind = next((kind for kind in made if entry[2].is_like(kind[0][2])), None)
        if kind is None:
            made.append([entry])
        else:
            kind.append(entry)
    return made
