"""Guest memory that lies in a file as it is.

Snapshots of VMMs other than QEMU have it so, and recordings: nothing is encoded, and each
block comes with its guest-physical address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qemu_svm.source.base import Source
from qemu_svm.stream.ram.blocks import BlockEntry
from qemu_svm.stream.ram.read import Ram
from qemu_svm.stream.ram.runs import NOWHERE, PageKind, Place, RamRuns
from qemu_svm.stream.records import RamBlock

_BESIDE = 1


class Piece(NamedTuple):
    """Consecutive pages of a block that follow one another in the file.

    :param page: number of the first, ``pages`` how many; ``offset`` in the file.
    """

    page: int
    pages: int
    offset: int


@dataclass(frozen=True, slots=True)
class Laid:
    """Where each block is; the lists are as long as the blocks of the stream.

    :param file: has the memory.
    :param addresses: guest-physical.
    :param pieces: of each block; of one that comes again the later one counts, and pages in none
        are zero.
    :param reason: what says so, in words.
    """

    file: Source
    addresses: tuple[int, ...]
    pieces: tuple[tuple[Piece, ...], ...]
    reason: str


def laid_ram(source: Source, blocks: Sequence[RamBlock], laid: Laid, page_size: int) -> Ram:
    """Return the index of memory that lies in a file.

    :param source: the input that the memory belongs to.
    """
    runs = RamRuns(page_size)
    entries = []
    for at, block in enumerate(blocks):
        entries.append(BlockEntry(block, None, laid.addresses[at]))
        pages, whole = block.used_length // page_size, sum(one.pages for one in laid.pieces[at])
        if whole < pages:
            runs.add(at, 0, pages, PageKind.ABSENT, NOWHERE)
        for page, count, offset in laid.pieces[at]:
            runs.add(at, page, count, PageKind.PLACED, Place(_BESIDE, offset))
    return Ram(tuple(entries), runs, page_size, (source, laid.file), (), 0, ())
