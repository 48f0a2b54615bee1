"""Selects runs of a log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qemu_svm.errors import PathError
from qemu_svm.nested.exit_codes import EXIT_CODES, INVALID, INVALID_32
from qemu_svm.vmruns.log import AttributedRun, Log
from qemu_svm.vmruns.roles import Role


@dataclass(frozen=True, slots=True)
class Selection:
    """The runs that meet all conditions.

    :param vcpu: number of the emulated host's CPU.
    :param exits: exit codes.
    :param first: record number of the first VMRUN, ``last`` of the last one.
    """

    vcpu: int | None = None
    role: Role | None = None
    exits: frozenset[int] | None = None
    first: int = 0
    last: int | None = None

    def matches(self, attributed: AttributedRun) -> bool:
        """Whether a run meets all conditions."""
        run = attributed.run
        return (
            (self.vcpu is None or run.entry.vcpu == self.vcpu)
            and (self.role is None or attributed.role is self.role)
            and (self.exits is None or run.exit_code in self.exits)
            and run.number >= self.first
            and (self.last is None or run.number <= self.last)
        )


@dataclass(frozen=True, slots=True)
class SelectedRun:
    """A selected run.

    :param before: the VMCB after the last run of the same role, selected or not; None if
        there was none.
    """

    attributed: AttributedRun
    before: bytes | None


def select(log: Log, wanted: Selection) -> Iterator[SelectedRun]:
    """Yield the runs of a log that a selection matches."""
    before: dict[tuple[int, Role], bytes] = {}
    for attributed in log.runs():
        run = attributed.run
        key = (run.address, attributed.role)
        if wanted.matches(attributed):
            yield SelectedRun(attributed, before.get(key))
        if run.exit is not None and run.exit.page is not None:
            before[key] = run.exit.page


def exit_codes(text: str) -> frozenset[int]:
    """Return exit codes by name (``VMRUN``, ``npf``) or number (``0x80``).

    :raises PathError: neither.
    """
    wanted = text.upper()
    codes = {code for code, name in EXIT_CODES.items() if name == wanted}
    if wanted == "INVALID":
        codes |= {INVALID, INVALID_32}
    if not codes:
        try:
            codes = {int(text, 0)}
        except ValueError:
            near = [name for name in EXIT_CODES.values() if wanted[:3] in name]
            raise PathError(f"unknown exit '{text}'", near=near[:6]) from None
    return frozenset(codes)
