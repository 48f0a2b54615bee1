"""Guest memory that lies in a file as it is, block after block.

Snapshots of VMMs other than QEMU have it so: nothing is encoded, and each block comes
with its guest-physical address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qemu_svm.source.base import Source
from qemu_svm.stream.ram.blocks import BlockEntry
from qemu_svm.stream.ram.read import Ram
from qemu_svm.stream.ram.runs import PageKind, Place, RamRuns
from qemu_svm.stream.records import RamBlock

_BESIDE = 1


@dataclass(frozen=True, slots=True)
class Laid:
    """Where each block is; the lists are as long as the blocks of the stream.

    :param file: has the memory.
    :param addresses: guest-physical.
    :param offsets: in ``file``.
    :param reason: what says so, in words.
    """

    file: Source
    addresses: tuple[int, ...]
    offsets: tuple[int, ...]
    reason: str


def laid_ram(source: Source, blocks: Sequence[RamBlock], laid: Laid, page_size: int) -> Ram:
    """Return the index of memory that lies in a file.

    :param source: the input that the memory belongs to.
    """
    runs = RamRuns(page_size)
    entries = []
    for at, block in enumerate(blocks):
        entries.append(BlockEntry(block, None, laid.addresses[at]))
        place = Place(_BESIDE, laid.offsets[at])
        runs.add(at, 0, block.used_length // page_size, PageKind.PLACED, place)
    return Ram(tuple(entries), runs, page_size, (source, laid.file), (), 0, ())
