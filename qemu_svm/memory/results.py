"""What a walk or a read returns: values that say why they end where they do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from qemu_svm.errors import AddressError


class Status(StrEnum):
    """How a translation ends."""

    MAPPED = "mapped"
    NOT_PRESENT = "not-present"
    """An entry of a page table is not present."""
    PERMISSION = "permission"
    """The access that was asked about is not allowed."""
    RESERVED = "reserved"
    """A reserved bit is set: a page fault, not a translation."""
    MMIO = "mmio"
    """An entry that KVM marks so that every access to the page exits to it."""
    NO_RAM = "no-ram"
    """The address is not RAM."""
    NOT_SENT = "not-sent"
    """The page is RAM, but the stream does not have it."""
    NOT_CANONICAL = "not-canonical"
    DAMAGED = "damaged"
    """The stream is damaged where the page is."""
    LIMIT = "limit"
    """A limit of :class:`~qemu_svm.limits.Limits` was met."""


WORDS = {
    Status.NOT_PRESENT: "not mapped",
    Status.PERMISSION: "the access is not permitted",
    Status.RESERVED: "a reserved bit is set in the page table entry",
    Status.MMIO: "the page is marked as MMIO by KVM",
    Status.NO_RAM: "the guest has no RAM there",
    Status.NOT_SENT: "the page was never sent",
    Status.NOT_CANONICAL: "the address is not canonical",
    Status.DAMAGED: "the stream is damaged where the page is",
    Status.LIMIT: "a limit was reached",
}
"""Why there is nothing to read, in words."""


def fault(status: Status, address: int) -> AddressError:
    """The error for an address that cannot be read."""
    return AddressError(WORDS[status], address=address, status=str(status))


@dataclass(frozen=True, slots=True)
class Step:
    """One access to a page table.

    :param stage: ``guest``, or ``nested`` for L1's tables for L2.
    :param level: 1 is the last one.
    :param table: address of the table: L1-physical, but L2-physical for L2's own tables.
    :param entry: None if it could not be read.
    :param flags: names of the bits set in the entry.
    """

    stage: str
    level: int
    table: int
    index: int
    entry: int | None
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Walk:
    """A translation with all its steps.

    :param address: L1-physical; None if the walk does not lead to an address.
    :param l2_physical: on the way, in the worlds of L2.
    :param size: of the page, in bytes; of the smaller one where there are two stages.
    :param flags: effective permissions and the bits of the last entry.
    """

    status: Status
    address: int | None = None
    l2_physical: int | None = None
    size: int | None = None
    flags: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """Memory of one status.

    :param data: empty unless ``status`` is mapped.
    """

    address: int
    size: int
    status: Status
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Run:
    """Mapped addresses that follow one another, as their targets do.

    :param target: in the address space below; None for :meth:`ranges`, which merge whatever
        the targets are.
    :param flags: effective permissions: W, U, NX.
    """

    start: int
    size: int
    target: int | None
    flags: tuple[str, ...]

    @property
    def end(self) -> int:
        """First address after the run."""
        return self.start + self.size
