"""For each page its last kind and how often it was sent.

Takes two bytes for each page of the guest, however long the stream is.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import cached_property

from qemu_svm.errors import LimitExceeded
from qemu_svm.stream.ram import compiled
from qemu_svm.stream.ram.read import Ram
from qemu_svm.stream.ram.runs import KIND, KIND_BITS, PageKind

MOST_PAGES = 1 << 28
"""Most pages of a guest that is examined page by page: 1 TiB with pages of 4 KiB."""

_ONE_MORE = bytes((*range(1, 256), 255))
_ZERO = (int(PageKind.ZERO), int(PageKind.ABSENT))


@dataclass(frozen=True)
class BlockCoverage:
    """Coverage of one block; counts over all pages are cached.

    :param kinds: a byte for each page: 0 never sent, else its last kind.
    :param times: a byte for each page: how often it was sent, up to 255.
    :param sent: copies in total.
    """

    kinds: bytearray
    times: bytearray
    sent: int

    @property
    def pages(self) -> int:
        """Number of pages of the block."""
        return len(self.kinds)

    @cached_property
    def zero(self) -> int:
        """Pages that are zero at the end."""
        return sum(self.kinds.count(kind) for kind in _ZERO)

    @cached_property
    def never(self) -> int:
        """Pages that were never sent."""
        return self.kinds.count(0)

    @property
    def data(self) -> int:
        """Pages with content at the end."""
        return self.pages - self.zero - self.never

    @property
    def again(self) -> int:
        """Copies that were replaced or changed by later ones."""
        return self.sent - (self.pages - self.never)

    @cached_property
    def repeated(self) -> int:
        """Pages sent more than once."""
        return self.pages - self.never - self.times.count(1)

    @cached_property
    def most(self) -> int:
        """Number of copies of the page with the most copies, up to 255."""
        often = self.times.translate(None, b"\0\1")
        return max(often, default=min(1, self.pages - self.never))


def cover_runs(where: array[int], count: array[int], kinds: bytearray, times: bytearray) -> None:
    """Apply runs, in the form of :class:`~qemu_svm.stream.ram.runs.RamRuns`, page by page."""
    for place, pages in zip(where, count, strict=True):
        page, kind = place >> KIND_BITS, place & KIND
        if pages == 1:
            kinds[page] = kind
            if times[page] < 255:
                times[page] += 1
            continue
        end = page + pages
        kinds[page:end] = bytes((kind,)) * pages
        times[page:end] = times[page:end].translate(_ONE_MORE)


cover = cover_runs if compiled.ram is None else compiled.ram.cover


def check_number(ram: Ram, pages: int, most: int = MOST_PAGES) -> None:
    """Check that the guest can be examined page by page.

    :raises LimitExceeded: there are more than ``most``.
    """
    if pages > most:
        raise LimitExceeded(
            "the guest has too many pages to examine each",
            offset=ram.entries[0].block.offset,
            section="ram",
            expected=f"at most {most} pages",
            found=f"{pages}",
        )


def coverage(ram: Ram, most_pages: int = MOST_PAGES) -> tuple[BlockCoverage, ...]:
    """Return the coverage of each block.

    :raises LimitExceeded: the guest has more than ``most_pages`` pages.
    """
    sizes = [ram.pages_of(number) for number in range(len(ram.entries))]
    check_number(ram, sum(sizes), most_pages)
    kinds = [bytearray(size) for size in sizes]
    times = [bytearray(size) for size in sizes]
    sent = [0] * len(sizes)
    for block, where, count, _ in ram.runs.pieces():
        sent[block] += sum(count)
        cover(where, count, kinds[block], times[block])
    return tuple(
        BlockCoverage(kinds[number], times[number], sent[number]) for number in range(len(sizes))
    )
