"""Results of the verbs on memory.

Memory can be large: what is read, mapped or found comes as an iterable, which text shows
item by item.  A document needs a sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from qemu_svm.results import Result

if TYPE_CHECKING:
    from qemu_svm.memory.core import Plan
    from qemu_svm.memory.disassembly import Instruction
    from qemu_svm.memory.formats import Format
    from qemu_svm.memory.layout import Layout
    from qemu_svm.memory.memory import AddressSpace
    from qemu_svm.memory.results import Piece, Run, Status, Walk
    from qemu_svm.memory.search import Found
    from qemu_svm.stream import RamBlock


@dataclass(frozen=True, slots=True)
class Place:
    """An address and the space that it is in.

    :param heading: which memory it is, in words.
    :param query: the address with its world, such as ``l2v:0x1000``.
    """

    heading: str
    query: str
    world: str
    address: int
    space: AddressSpace
    vcpu: int


@dataclass(frozen=True, slots=True, repr=False)
class MemoryRead(Result):
    """Memory at an address, read while it is shown.

    :param size: in bytes.
    :param form: values or strings; None for a hexdump.
    :param statuses: those that were met so far.
    """

    verb: ClassVar[str] = "mem_read"
    place: Place
    size: int
    form: Format | None = None
    statuses: set[Status] = field(default_factory=set)

    def pieces(self) -> Iterator[Piece]:
        """Return the memory in pieces of one status."""
        for piece in self.place.space.pieces(self.place.address, self.size):
            self.statuses.add(piece.status)
            yield piece


@dataclass(frozen=True, slots=True, repr=False)
class Disassembly(Result):
    """Instructions at an address.

    :param current: address of the vCPU's next instruction in this world; None if it has none.
    """

    verb: ClassVar[str] = "mem_disasm"
    place: Place
    instructions: Sequence[Instruction]
    current: int | None


@dataclass(frozen=True, slots=True, repr=False)
class Translation(Result):
    """The translation of an address, with all its steps."""

    verb: ClassVar[str] = "mem_translate"
    place: Place
    walk: Walk


@dataclass(frozen=True, slots=True, repr=False)
class PhysicalMap(Result):
    """RAM at its L1-physical addresses.

    :param blocks: those of the stream, which the layout numbers.
    """

    verb: ClassVar[str] = "mem_layout"
    place: Place
    layout: Layout
    blocks: Sequence[RamBlock]


@dataclass(frozen=True, slots=True, repr=False)
class MappedRanges(Result):
    """Addresses that page tables map.

    :param complete: whether all of them are in ``runs``.
    """

    verb: ClassVar[str] = "mem_map"
    place: Place
    runs: Iterable[Run]
    complete: bool = True


@dataclass(frozen=True, slots=True, repr=False)
class SearchReport(Result):
    """Where a pattern was found.

    :param complete: whether everything was searched, and all that was found is in ``hits``.
    """

    verb: ClassVar[str] = "mem_search"
    place: Place
    pattern: bytes
    hits: Iterable[Found]
    complete: bool = True


@dataclass(frozen=True, slots=True, repr=False)
class CoreReport(Result):
    """A core that was written.

    :param commands: that open it.
    """

    verb: ClassVar[str] = "mem_core"
    path: str
    plan: Plan
    commands: Sequence[str]
