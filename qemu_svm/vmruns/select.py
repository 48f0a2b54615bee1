"""Which runs of a log are wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qemu_svm.errors import PathError
from qemu_svm.nested.exit_codes import EXIT_CODES, INVALID, INVALID_32
from qemu_svm.vmruns.log import Known, Log
from qemu_svm.vmruns.roles import Role


@dataclass(frozen=True, slots=True)
class Selection:
    """Everything that is given must hold.

    :param vcpu: of the emulated host.
    :param exits: exit codes.
    :param first: numbers of the VMRUNs, ``last`` included.
    """

    vcpu: int | None = None
    role: Role | None = None
    exits: frozenset[int] | None = None
    first: int = 0
    last: int | None = None

    def takes(self, known: Known) -> bool:
        """Whether a run is wanted."""
        run = known.run
        return (
            (self.vcpu is None or run.entry.vcpu == self.vcpu)
            and (self.role is None or known.role is self.role)
            and (self.exits is None or run.exit_code in self.exits)
            and run.number >= self.first
            and (self.last is None or run.number <= self.last)
        )


@dataclass(frozen=True, slots=True)
class Chosen:
    """A run that is wanted.

    :param before: how the VMCB was left by the last run of the same role, wanted or
        not; None if there was none.
    """

    known: Known
    before: bytes | None


def choose(log: Log, wanted: Selection) -> Iterator[Chosen]:
    """The wanted runs of a log."""
    before: dict[tuple[int, Role], bytes] = {}
    for known in log.runs():
        run = known.run
        key = (run.address, known.role)
        if wanted.takes(known):
            yield Chosen(known, before.get(key))
        if run.exit is not None and run.exit.page is not None:
            before[key] = run.exit.page


def exit_codes(text: str) -> frozenset[int]:
    """Exit codes by name (``VMRUN``, ``npf``) or number (``0x80``).

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
            raise PathError(f"there is no exit '{text}'", near=near[:6]) from None
    return frozenset(codes)
