"""For each RAM block how many of its pages were sent, how often, and what they are at the end."""

from __future__ import annotations

from dataclasses import dataclass

from qemu_svm.stream.ram.final import Final, Tally
from qemu_svm.stream.ram.read import Ram


@dataclass(frozen=True, slots=True)
class BlockCoverage:
    """Coverage of one block.

    :param pages: number of pages of the block.
    :param sent: copies in total.
    :param whole: numbers of its pages.
    :param final: the last copies of its pages.
    """

    pages: int
    sent: int
    whole: Tally
    final: Final

    @property
    def zero(self) -> int:
        """Pages that are zero at the end."""
        return self.whole.zero

    @property
    def never(self) -> int:
        """Pages that were never sent."""
        return self.pages - self.whole.sent

    @property
    def data(self) -> int:
        """Pages with content at the end."""
        return self.whole.data

    @property
    def again(self) -> int:
        """Copies that were replaced or changed by later ones."""
        return self.sent - self.whole.sent

    @property
    def repeated(self) -> int:
        """Pages sent more than once."""
        return self.whole.repeated

    @property
    def most(self) -> int:
        """Number of copies of the page with the most copies, up to 255."""
        return self.whole.most


def coverage(ram: Ram) -> tuple[BlockCoverage, ...]:
    """Return the coverage of each block."""
    found = []
    for number in range(len(ram.entries)):
        pages, final = ram.pages_of(number), ram.final(number)
        whole = final.tally(0, pages)
        sent = ram.runs.records_of(number) if whole.repeated else whole.sent
        found.append(BlockCoverage(pages, sent, whole, final))
    return tuple(found)
