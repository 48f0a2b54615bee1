"""Compares the RAM of two streams page by page.

Blocks are matched by name and compared by the final content of their pages, however
it was sent: plain, as zeros, encoded, over channels, in place (mapped-ram).  Pages
that one stream never sent have no content; they are counted separately.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from qemu_svm.errors import StreamError, Unsupported
from qemu_svm.findings.masks import Mask, Masks
from qemu_svm.limits import MIB
from qemu_svm.stream.ram.final import NEVER, FinalRam
from qemu_svm.stream.ram.read import Ram
from qemu_svm.stream.ram.runs import PageKind

MOST_RANGES = 1 << 16
"""Ranges of differing pages that are kept; further pages are only counted."""
_MOST_ERRORS = 8  # on each side; all pages are counted


class PageState(StrEnum):
    """The final content of a page in a stream."""

    DATA = "data"
    ZERO = "zero"
    NEVER = "never sent"


@dataclass(slots=True)
class RamRange:
    """Successive pages that differ in the same way.

    :param page: number of the first page.
    :param different: bytes that differ; 0 if one side was never sent.
    :param place_a: offset of the first page's content in the first stream;
        None if it has none, or it is in a channel.
    """

    page: int
    count: int
    a: PageState
    b: PageState
    different: int
    place_a: int | None
    place_b: int | None

    def like(self, a: PageState, b: PageState) -> bool:
        """Whether pages with these states belong to the range."""
        return (self.a, self.b) == (a, b)


@dataclass(slots=True)
class BlockDiff:
    """Differences of one RAM block.

    :param size_a: bytes in the first stream; None if it does not have the block.
    :param pages: number of pages of the larger side.
    :param same: pages with equal content; a zero page equals a page of zeros.
    :param never: pages that neither stream sent.
    :param different: pages whose content differs.
    :param only_a: pages that only the first stream sent.
    :param unreadable: pages that could not be read in one of them.
    :param mask: the mask that covers the block; None if it counts.
    :param dropped: pages that are counted but not in ``ranges``, which has a maximum.
    """

    name: str
    size_a: int | None
    size_b: int | None
    page_size: int
    pages: int = 0
    same: int = 0
    never: int = 0
    different: int = 0
    only_a: int = 0
    only_b: int = 0
    unreadable: int = 0
    ranges: list[RamRange] = field(default_factory=list)
    dropped: int = 0
    mask: Mask | None = None

    @property
    def counts(self) -> bool:
        """Whether a page differs, or only one stream sent it, and no mask covers the block."""
        return self.mask is None and self.different + self.only_a + self.only_b > 0


@dataclass(frozen=True, slots=True)
class RamDiff:
    """Differences of all blocks, those of the first stream first.

    :param problems: (``a`` or ``b``, why pages could not be read).
    """

    blocks: tuple[BlockDiff, ...]
    problems: tuple[tuple[str, StreamError], ...] = ()

    @property
    def same(self) -> bool:
        """Whether all pages are equal, except in masked blocks."""
        return not any(block.counts for block in self.blocks)


def compare_ram(
    a: Ram,
    b: Ram,
    masks: Sequence[Mask] = (),
    progress: Callable[[int], None] = lambda _done: None,
    most_ranges: int = MOST_RANGES,
) -> RamDiff:
    """Compare all RAM blocks.

    :param masks: a block that a mask covers as ``ram.BLOCK`` does not count.
    :param progress: called with the number of pages done.
    :raises LimitExceeded: one of the guests is too large.
    :raises Unsupported: their pages differ in size.
    """
    if a.page_size != b.page_size:
        raise Unsupported(
            "guests with different page sizes cannot be compared page by page",
            offset=b.blocks[0].offset if b.blocks else 0,
            section="ram",
            expected=f"{a.page_size}",
            found=f"{b.page_size}",
        )
    return _Comparer(a, b, Masks(tuple(masks)), progress, most_ranges).run()


# For each page of both sides: 0 never sent, 1 zero, 2 anything else.
_STATES = (PageState.NEVER, PageState.ZERO, PageState.DATA)
_OF_KIND = bytes(
    0 if kind == NEVER else 1 if kind in (PageKind.ZERO, PageKind.ABSENT) else 2
    for kind in range(256)
)
_ALIKE = re.compile(rb"(.)\1*", re.DOTALL)


class _Comparer:
    def __init__(
        self,
        a: Ram,
        b: Ram,
        masks: Masks,
        progress: Callable[[int], None],
        most_ranges: int,
    ) -> None:
        self.a, self.b = FinalRam(a), FinalRam(b)
        self._masks = masks
        self.left = most_ranges
        self.problems: list[tuple[str, StreamError]] = []
        self._progress = progress
        self._done = 0

    def run(self) -> RamDiff:
        a, b = self.a.ram, self.b.ram
        ours = {block.name: number for number, block in enumerate(a.blocks)}
        theirs = {block.name: number for number, block in enumerate(b.blocks)}
        found = []
        for name in dict.fromkeys((*ours, *theirs)):
            size_a = a.blocks[ours[name]].used_length if name in ours else None
            size_b = b.blocks[theirs[name]].used_length if name in theirs else None
            mask = self._masks.find(f"ram.{name}", None, None)
            block = BlockDiff(name, size_a, size_b, a.page_size, mask=mask)
            if name in ours and name in theirs:  # else the difference of the block lists shows it
                _Pages(self, block, ours[name], theirs[name]).run()
            found.append(block)
        return RamDiff(tuple(found), tuple(self.problems))

    def done(self, pages: int) -> None:
        self._done += pages
        self._progress(self._done)

    def problem(self, side: str, error: StreamError) -> None:
        if [name for name, _ in self.problems].count(side) < _MOST_ERRORS:
            self.problems.append((side, error))


class _Pages:
    # The pages of one block, from the first to the last.
    def __init__(self, all_: _Comparer, block: BlockDiff, ours: int, theirs: int) -> None:
        self._all = all_
        self._block = block
        self._sides = ((all_.a, ours), (all_.b, theirs))
        self._batch = max(1, MIB // block.page_size)
        self._zeros = bytes(block.page_size)

    def run(self) -> None:
        block = self._block
        states = [ram.kinds[number].translate(_OF_KIND) for ram, number in self._sides]
        block.pages = max(map(len, states))
        ours, theirs = (part.ljust(block.pages, b"\0") for part in states)
        together = bytes(3 * a + b for a, b in zip(ours, theirs, strict=True))
        for run in _ALIKE.finditer(together):
            page, end = run.span()
            a, b = (_STATES[state] for state in divmod(together[page], 3))
            if PageState.NEVER in (a, b):
                self._one_side(page, end - page, a, b)
            elif a is b is PageState.ZERO:
                block.same += end - page
                self._all.done(end - page)
            else:
                while page < end:
                    count = self._some(page, end - page, a, b)
                    self._all.done(count)
                    page += count

    def _one_side(self, page: int, count: int, a: PageState, b: PageState) -> None:
        self._all.done(count)
        if a is b:
            self._block.never += count
            return
        if a is PageState.NEVER:
            self._block.only_b += count
        else:
            self._block.only_a += count
        self._note(page, count, a, b, 0)

    def _some(self, page: int, most: int, a: PageState, b: PageState) -> int:
        # Compare pages from ``page`` on; return how many.
        most = min(most, self._batch)
        (ours, block_a), (theirs, block_b) = self._sides
        count, at_a, stride_a = ours.whole(block_a, page, most)
        if count:
            count, at_b, stride_b = theirs.whole(block_b, page, count)
        if not count:
            self._one(page, a, b)
            return 1
        size = self._block.page_size
        try:
            raw_a = memoryview(ours.read(at_a, (count - 1) * stride_a + size))
            raw_b = memoryview(theirs.read(at_b, (count - 1) * stride_b + size))
        except StreamError:
            self._one(page, a, b)
            return 1
        # Between the pages are their numbers, which agree.
        if stride_a == stride_b and raw_a == raw_b:
            self._block.same += count
            return count
        for number in range(count):
            page_a = raw_a[number * stride_a :][:size]
            page_b = raw_b[number * stride_b :][:size]
            self._compared(page + number, page_a, page_b, a, b)
        return count

    def _one(self, page: int, a: PageState, b: PageState) -> None:
        content = []
        for side, state, (ram, block) in zip("ab", (a, b), self._sides, strict=True):
            try:
                content.append(self._zeros if state is PageState.ZERO else ram.page(block, page))
            except StreamError as error:
                self._all.problem(side, error)
        if len(content) == 2:
            self._compared(page, memoryview(content[0]), memoryview(content[1]), a, b)
        else:
            self._block.unreadable += 1

    def _compared(
        self, page: int, a: memoryview, b: memoryview, of_a: PageState, of_b: PageState
    ) -> None:
        if a == b:
            self._block.same += 1
            return
        self._block.different += 1
        both = int.from_bytes(a, "big") ^ int.from_bytes(b, "big")
        self._note(page, 1, of_a, of_b, len(a) - both.to_bytes(len(a), "big").count(0))

    def _note(self, page: int, count: int, a: PageState, b: PageState, different: int) -> None:
        last = self._block.ranges[-1] if self._block.ranges else None
        continues = last is not None and last.page + last.count == page and last.like(a, b)
        if last is not None and continues and not self._block.dropped:
            last.count += count
            last.different += different
            return
        if not self._all.left:
            self._block.dropped += count
            return
        self._all.left -= 1
        places = [_place(ram, block, page) for ram, block in self._sides]
        self._block.ranges.append(RamRange(page, count, a, b, different, *places))


def _place(ram: FinalRam, block: int, page: int) -> int | None:
    place = ram.place(block, page) if page < len(ram.kinds[block]) else None
    return place.offset if place is not None and place.input == 0 else None
