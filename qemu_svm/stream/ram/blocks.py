"""The list of RAM blocks after MEM_SIZE.

Each entry is a counted name and the block's length, followed by the fields that
capabilities add: a page size of the block (postcopy), the guest-physical address
(x-ignore-shared), header and pages (mapped-ram).

Nothing on the wire announces the page size.  It starts with a zero byte, unlike the
length of a name, and has no bit set where records have their flags; so eight such
bytes after an entry are a page size.

Source: QEMU ``migration/ram.c`` (``ram_save_setup``, ``parse_ramblock``), 5.2
to 10.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qemu_svm.errors import Malformed
from qemu_svm.stream.reader import Reader, name_text
from qemu_svm.stream.records import RamBlock
from qemu_svm.stream.structs import RamBlock as RamBlockLayout

if TYPE_CHECKING:
    from qemu_svm.stream.ram.mapped import MappedBlock

_MOST_BLOCKS = 4096
_FLAGS = 0x3FF


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One entry of the list, with the fields that capabilities add.

    :param page_size: the block's own page size in bytes; None if there is none.
    :param address: where the block's memory region starts in its container
        (x-ignore-shared).
    :param mapped: where its pages are (mapped-ram).
    """

    block: RamBlock
    page_size: int | None = None
    address: int | None = None
    mapped: MappedBlock | None = None


def read_blocks(
    reader: Reader, total: int, page_size: int | None, *, mapped: bool, shared: bool
) -> tuple[BlockEntry, ...]:
    """Read the list.

    :param total: sum of the lengths of all blocks.
    :param page_size: of the guest; None if it is not known.
    :param mapped: mapped-ram is on.
    :param shared: x-ignore-shared is on.
    :raises Malformed: the lengths do not add up, or two blocks have the same name.
    """
    entries: list[BlockEntry] = []
    names: set[str] = set()
    listed = 0
    base: int | None = None  # known from the first mapped block on
    while listed < total:
        start = reader.offset
        entry = reader.structure(RamBlockLayout, "a RAM block of the block list")
        listed += entry.used_length
        if not entry.name or listed > total or len(entries) >= _MOST_BLOCKS:
            raise Malformed(
                "lengths of the RAM blocks do not add up to the total",
                offset=start,
                section="ram",
                expected=f"{total:#x} bytes",
                found=f"{listed:#x} in {len(entries) + 1} blocks",
            )
        block = RamBlock(name_text(entry.name), entry.used_length, start)
        if block.name in names:
            raise Malformed(
                "two RAM blocks have the same name",
                offset=start,
                section="ram",
                expected="a name for each block, to which its pages refer",
                found=repr(block.name),
            )
        names.add(block.name)
        own_size = address = placed = None
        if shared:
            address = reader.u64("a RAM block's address")
        if mapped:
            from qemu_svm.stream.ram.mapped import read_header

            placed, base = read_header(reader, entry.used_length, base, page_size)
        elif _extra(reader):
            word = reader.u64("a RAM block's page size")
            # With an address too, the page size comes first.
            own_size, address = (address, word) if shared else (word, None)
        entries.append(BlockEntry(block, own_size, address, placed))
    return tuple(entries)


def _extra(reader: Reader) -> bool:
    head = reader.peek(8)
    return len(head) == 8 and not head[0] and not int.from_bytes(head, "big") & _FLAGS
