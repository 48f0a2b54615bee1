"""Entries joined with their exits.

A *run* is one VMRUN of L0: the VMCB as the processor got it, the VMCB as #VMEXIT
left it, and, if the guest was stopped by a VMRUN of its own, that VMRUN with the
vmcb12 it points at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qemu_svm.nested import layout
from qemu_svm.vmruns.reader import Event
from qemu_svm.vmruns.structs import Flag, Kind

_U64 = 8
_EXIT_CODE = layout.CONTROL.member("exit_code").offset


def save_field(page: bytes, name: str) -> int:
    """A number out of a VMCB's save area."""
    member = layout.SAVE.member(name)
    start = layout.SAVE_OFFSET + member.offset
    return int.from_bytes(page[start : start + member.size], "little")


def control_field(page: bytes, name: str) -> int:
    """A number out of a VMCB's control area; the intercepts as one number."""
    member = layout.CONTROL.member(name)
    return int.from_bytes(page[member.offset : member.offset + member.size], "little")


@dataclass(frozen=True, slots=True)
class Run:
    """One VMRUN of L0.

    :param exit: None if it was not seen: the log ends, or the machine's state was
        replaced.
    :param vmrun: the guest's own VMRUN that ended the run.
    :param vmcb12: what that VMRUN points at, if it could be read.
    """

    entry: Event
    exit: Event | None = None
    vmrun: Event | None = None
    vmcb12: Event | None = None

    @property
    def number(self) -> int:
        """Of the entry."""
        return self.entry.number

    @property
    def address(self) -> int:
        """Of the VMCB, in the emulated host's physical memory."""
        return self.entry.rax & ~0xFFF

    @property
    def exit_code(self) -> int | None:
        """EXITCODE; None if the exit was not seen or could not be read."""
        if self.exit is None or self.exit.page is None:
            return None
        return int.from_bytes(self.exit.page[_EXIT_CODE : _EXIT_CODE + _U64], "little")


def runs(events: Iterable[Event], others: dict[int, int] | None = None) -> Iterator[Run]:
    """Join events to runs, in the order of their ends.

    :param others: gets the number of records of every kind.
    """
    open_runs: dict[int, Run] = {}
    for event in events:
        if others is not None:
            others[event.kind] = others.get(event.kind, 0) + 1
        current = open_runs.get(event.vcpu)
        if event.kind == Kind.VMRUN and not event.in_guest:
            if current is not None:
                yield current
            open_runs[event.vcpu] = Run(event)
        elif current is None:
            continue
        elif event.kind == Kind.VMRUN:
            open_runs[event.vcpu] = Run(current.entry, None, event)
        elif event.kind == Kind.VMCB12 and current.vmrun is not None:
            vmcb12 = event if event.page is not None else None
            open_runs[event.vcpu] = Run(current.entry, None, current.vmrun, vmcb12)
        elif event.kind == Kind.EXIT:
            del open_runs[event.vcpu]
            matched = event if Flag.UNPAIRED not in event.flags else None
            yield Run(current.entry, matched, current.vmrun, current.vmcb12)
    yield from sorted(open_runs.values(), key=lambda run: run.number)
