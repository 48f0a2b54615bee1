"""Joins entries with their exits.

A *run* is one VMRUN of L0: the VMCB at VMRUN, the VMCB after #VMEXIT and, if the run
ended with a VMRUN of the guest, that VMRUN with the vmcb12 it points at.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from qemu_svm.nested import layout
from qemu_svm.vmruns.reader import Event
from qemu_svm.vmruns.structs import Flag, RecordKind

_U64 = 8
_EXIT_CODE = layout.CONTROL.member("exit_code").offset


def save_field(page: bytes, name: str) -> int:
    """Read a number of a VMCB's save area."""
    member = layout.SAVE.member(name)
    start = layout.SAVE_OFFSET + member.offset
    return int.from_bytes(page[start : start + member.size], "little")


def control_field(page: bytes, name: str) -> int:
    """Read a number of a VMCB's control area; the intercepts are one number."""
    member = layout.CONTROL.member(name)
    return int.from_bytes(page[member.offset : member.offset + member.size], "little")


@dataclass(frozen=True, slots=True)
class Run:
    """One VMRUN of L0.

    :param exit: None if the log does not have it: it ends, or the machine's state was
        replaced.
    :param vmrun: the guest's VMRUN that ended the run.
    :param vmcb12: the VMCB that it points at, if that could be read.
    """

    entry: Event
    exit: Event | None = None
    vmrun: Event | None = None
    vmcb12: Event | None = None

    @property
    def number(self) -> int:
        """Record number of the entry."""
        return self.entry.number

    @property
    def address(self) -> int:
        """Physical address of the VMCB in the emulated host's memory."""
        return self.entry.rax & ~0xFFF

    @property
    def exit_code(self) -> int | None:
        """EXITCODE; None if the exit is not in the log or could not be read."""
        if self.exit is None or self.exit.page is None:
            return None
        return int.from_bytes(self.exit.page[_EXIT_CODE : _EXIT_CODE + _U64], "little")


def runs(events: Iterable[Event], counts: dict[int, int] | None = None) -> Iterator[Run]:
    """Join records into runs, in the order in which they end.

    :param counts: is filled with the number of records of every kind.
    """
    open_runs: dict[int, Run] = {}
    for event in events:
        if counts is not None:
            counts[event.kind] = counts.get(event.kind, 0) + 1
        current = open_runs.get(event.vcpu)
        if event.kind == RecordKind.VMRUN and not event.in_guest:
            if current is not None:
                yield current
            open_runs[event.vcpu] = Run(event)
        elif current is None:
            continue
        elif event.kind == RecordKind.VMRUN:
            open_runs[event.vcpu] = Run(current.entry, None, event)
        elif event.kind == RecordKind.VMCB12 and current.vmrun is not None:
            vmcb12 = event if event.page is not None else None
            open_runs[event.vcpu] = Run(current.entry, None, current.vmrun, vmcb12)
        elif event.kind == RecordKind.EXIT:
            del open_runs[event.vcpu]
            matched = event if Flag.UNPAIRED not in event.flags else None
            yield Run(current.entry, matched, current.vmrun, current.vmcb12)
    yield from sorted(open_runs.values(), key=lambda run: run.number)
