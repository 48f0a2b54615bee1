"""Attributes each entry to a level: vmcb01 (L1 runs) or vmcb02 (L2 runs).

The log does not name the VMCBs, but their order shows which is which:

* a guest whose run ended with its own VMRUN is L1 if the next entry has RIP, RSP and
  RAX of the vmcb12 that the VMRUN pointed at; that entry is L2 (**proved**).  Copies
  of one guest have the same registers; then the one on the same processor is meant.
  Where vmcb12 could not be read (L0 without nested paging), the next entry on that
  processor is L2 unless it continues after the VMRUN (**inferred**);
* L1 gets control back by an entry with the RIP after its VMRUN, and its RSP and RAX;
* since 5.13 KVM has a VMCB for each level, so what is known of an address holds for
  all entries with it, earlier ones too.  Before, one VMCB serves both levels: of the
  entries before the first VMRUN in the log, those from the one that continues after
  that same VMRUN on are L1's, and those before it L2's.

All other entries remain unknown: most guests never execute VMRUN.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from qemu_svm.errors import LimitExceeded
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.vmruns.runs import Run, save_field

_VMRUN_SIZE = 3
_MAX_AWAITED = 64

EntryState = tuple[int, int, int]
"""RIP, RSP and RAX, by which an entry is recognised."""


class Role(IntEnum):
    """The level that runs after an entry."""

    UNKNOWN = 0
    L1 = 1
    L2 = 2


class Certainty(IntEnum):
    """How the level of an entry is known."""

    NONE = 0
    INFERRED = 1
    PROVED = 2


@dataclass
class Vmcb:
    """One VMCB, by its address in the emulated host's memory.

    :param role: of the last entry; of all entries unless ``shared``.
    :param shared: one VMCB for L1 and L2 (before 5.13).
    :param pair: number of the KVM vCPU, in order of appearance; -1 if unknown.
    :param first: number of its first entry, ``last`` of its last.
    :param exits: how often each exit code came.
    """

    address: int
    role: Role = Role.UNKNOWN
    certainty: Certainty = Certainty.NONE
    shared: bool = False
    pair: int = -1
    runs: int = 0
    first: int = 0
    last: int = 0
    exits: dict[int, int] = field(default_factory=dict)
    # Runs whose role is not known yet, with their states; where L1 continues after VMRUN;
    # the state at the last #VMEXIT.
    unknown: array[int] = field(default_factory=lambda: array("Q"))
    back: set[EntryState] = field(default_factory=set)
    left: EntryState | None = None


@dataclass(frozen=True, slots=True)
class _Awaited:
    # L1 executed VMRUN in run ``index``; ``back`` is where it will continue.
    vmcb01: Vmcb
    index: int
    back: EntryState
    certainty: Certainty


def state(page: bytes) -> EntryState:
    """Read RIP, RSP and RAX of a VMCB's save area."""
    return save_field(page, "rip"), save_field(page, "rsp"), save_field(page, "rax")


def _too_many(what: str, run: Run, limit: str, most: int) -> LimitExceeded:
    return LimitExceeded(
        f"too many {what}",
        offset=run.entry.offset,
        expected=f"at most {most}",
        hint=f"raise the limit {limit}, or record less: the plugin accepts limit=SIZE",
    )


class Roles:
    """Infers the role of each run of a log; look it up by the run's number afterwards."""

    def __init__(self, limits: Limits = DEFAULT) -> None:
        self._limits = limits
        self.vmcbs: dict[int, Vmcb] = {}
        self._roles = bytearray()
        self._awaited: dict[EntryState, dict[int, _Awaited]] = {}
        self._next: dict[int, _Awaited] = {}
        self._pairs = 0

    def __len__(self) -> int:
        return len(self._roles)

    def of(self, place: int) -> tuple[Role, Certainty]:
        """Return the role of run number ``place``, from 0, and how it is known."""
        value = self._roles[place]
        return Role(value & 3), Certainty(value >> 2)

    def learn(self, all_runs: Iterable[Run]) -> Roles:
        """Infer the roles of all runs of a log, given in order.

        :raises LimitExceeded: more entries or addresses than the limits allow.
        """
        for run in all_runs:
            vmcb = self.vmcbs.setdefault(run.address, Vmcb(run.address))
            if len(self._roles) >= self._limits.vmruns_entries:
                raise _too_many("entries", run, "vmruns_entries", self._limits.vmruns_entries)
            if len(self.vmcbs) > self._limits.vmruns_vmcbs:
                raise _too_many("VMCBs", run, "vmruns_vmcbs", self._limits.vmruns_vmcbs)
            self._learn(run, vmcb)
        return self

    def _learn(self, run: Run, vmcb: Vmcb) -> None:
        index = len(self._roles)
        self._roles.append(0)
        vmcb.runs += 1
        vmcb.first = vmcb.first or run.number
        vmcb.last = run.number
        if run.exit_code is not None:
            vmcb.exits[run.exit_code] = vmcb.exits.get(run.exit_code, 0) + 1
        if run.entry.page is not None:
            self._enter(run, index, vmcb, state(run.entry.page))
        if run.exit is not None and run.exit.page is not None:
            vmcb.left = state(run.exit.page)
            if run.vmrun is not None:
                self._executed_vmrun(run, index, vmcb, vmcb.left)

    def _enter(self, run: Run, index: int, vmcb: Vmcb, here: EntryState) -> None:
        awaited = self._expected(run, here, vmcb) or self._guess(run, here)
        if awaited is not None:
            self._entered_l2(index, vmcb, awaited)
        elif here in vmcb.back:
            vmcb.role = Role.L1
        self._set(index, vmcb.role, vmcb.certainty)
        if not vmcb.role:
            vmcb.unknown.extend((index, *here))

    def _expected(self, run: Run, here: EntryState, vmcb: Vmcb) -> _Awaited | None:
        # Copies of one guest await the same state.  Then the one on the same processor is
        # meant; one on another processor only if this VMCB does not simply continue.
        waiting = self._awaited.get(here, {})
        cpu = run.entry.vcpu
        for other in sorted(waiting, key=lambda one: one != cpu):
            pair = waiting[other].vmcb01.pair
            if vmcb.pair >= 0 and pair >= 0 and pair != vmcb.pair:
                continue
            if other == cpu or vmcb.left != here:
                return waiting.pop(other)
        return None

    def _guess(self, run: Run, here: EntryState) -> _Awaited | None:
        # vmcb12 is not known: the next entry is L2, unless L1 continues where it was.
        awaited = self._next.pop(run.entry.vcpu, None)
        if awaited is None or here[0] in (awaited.back[0], awaited.back[0] - _VMRUN_SIZE):
            return None
        return awaited

    def _entered_l2(self, index: int, vmcb: Vmcb, awaited: _Awaited) -> None:
        vmcb01, certainty = awaited.vmcb01, awaited.certainty
        if vmcb01.pair < 0:
            vmcb01.pair, self._pairs = self._pairs, self._pairs + 1
        vmcb.pair = vmcb01.pair
        vmcb.shared = vmcb.shared or vmcb is vmcb01
        vmcb01.back.add(awaited.back)
        vmcb01.role, vmcb01.certainty = Role.L1, max(certainty, vmcb01.certainty)
        self._set(awaited.index, Role.L1, certainty)
        self._look_back(vmcb01, awaited.back)
        vmcb.role, vmcb.certainty = Role.L2, max(certainty, vmcb.certainty)
        self._look_back(vmcb, awaited.back)
        self._set(index, Role.L2, certainty)

    def _look_back(self, vmcb: Vmcb, back: EntryState) -> None:
        # The role of the address before anything was known of it.  A shared VMCB was L1's
        # from where L1 continued after this VMRUN on, and L2's before that.
        unknown, role, continued = vmcb.unknown, vmcb.role, False
        for at in range(len(unknown) - 4, -1, -4):
            if vmcb.shared:
                here = tuple(unknown[at + 1 : at + 4]) == back
                role = Role.L2 if continued and not here else Role.L1
                continued = continued or here
            self._set(unknown[at], role, vmcb.certainty)
        vmcb.unknown = array("Q")

    def _executed_vmrun(self, run: Run, index: int, vmcb: Vmcb, left: EntryState) -> None:
        rip, rsp, rax = left
        back = (rip + _VMRUN_SIZE, rsp, rax)
        if run.vmcb12 is not None and run.vmcb12.page is not None:
            if len(self._awaited) >= _MAX_AWAITED:
                del self._awaited[next(iter(self._awaited))]
            waiting = self._awaited.setdefault(state(run.vmcb12.page), {})
            waiting[run.entry.vcpu] = _Awaited(vmcb, index, back, Certainty.PROVED)
        else:
            self._next[run.entry.vcpu] = _Awaited(vmcb, index, back, Certainty.INFERRED)

    def _set(self, index: int, role: Role, certainty: Certainty) -> None:
        if role:
            self._roles[index] = role | certainty << 2
