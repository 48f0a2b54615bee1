"""A run of many plans, as it is shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qemu_svm.replay.conform import Report
from qemu_svm.results import Result


@dataclass(frozen=True, slots=True, repr=False)
class ConformReport(Result):
    """Many plans on a kernel of the lab.

    :param kernel: its release line, such as ``6.1``.
    :param npt: nested paging of the emulated host.
    """

    verb: ClassVar[str] = "lab_conform"
    report: Report
    kernel: str
    npt: bool
