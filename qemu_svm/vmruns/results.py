"""What is shown of a log: its runs, or one VMCB."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qemu_svm.errors import PathError
from qemu_svm.results import Result
from qemu_svm.vmruns.log import Log
from qemu_svm.vmruns.reader import Event
from qemu_svm.vmruns.select import Selection


@dataclass(frozen=True, slots=True, repr=False)
class RunsReport(Result):
    """A log, and which of its runs are shown."""

    verb: ClassVar[str] = "vmruns"
    log: Log
    selection: Selection


@dataclass(frozen=True, slots=True, repr=False)
class VmcbPage(Result):
    """One VMCB as the processor was given it, or as it was left."""

    verb: ClassVar[str] = "vmruns_page"
    event: Event


def vmcb(log: Log, number: int) -> VmcbPage:
    """Return the VMCB of a record.

    :param number: of the record.
    :raises PathError: there is no such record, or it has no VMCB.
    """
    near: list[str] = []
    for event in log.events():
        if event.page is None:
            continue
        if event.number == number:
            return VmcbPage(event)
        near = [*near[-2:], str(event.number)]
        if event.number > number:
            break
    raise PathError(f"the log has no record {number} with a VMCB", near=near)
