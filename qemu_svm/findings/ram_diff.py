"""Compares the RAM of two streams page by page.

Blocks are matched by name and compared by the final content of their pages, however
it was sent: plain, as zeros, encoded, over channels, in place (mapped-ram).  Pages
that one stream never sent have no content; they are counted separately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from qemu_svm.errors import StreamError, Unsupported
from qemu_svm.findings.masks import Mask, Masks
from qemu_svm.limits import MIB
from qemu_svm.stream.ram.final import Copy
from qemu_svm.stream.ram.read import Ram
from qemu_svm.stream.ram.runs import PageKind, Place, unpack

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


_WHOLE = (int(PageKind.PAGE), int(PageKind.PLACED))
_EMPTY = (int(PageKind.ZERO), int(PageKind.ABSENT))

_Sides = tuple[Copy | None, Copy | None]
"""The copies of a page in both streams; None where it was never sent."""


def _state(copy: Copy | None) -> PageState:
    if copy is None:
        return PageState.NEVER
    return PageState.ZERO if copy[0] in _EMPTY else PageState.DATA


class _Comparer:
    def __init__(
        self,
        a: Ram,
        b: Ram,
        masks: Masks,
        progress: Callable[[int], None],
        most_ranges: int,
    ) -> None:
        self.a, self.b = a, b
        self._masks = masks
        self.left = most_ranges
        self.problems: list[tuple[str, StreamError]] = []
        self._progress = progress
        self._done = 0

    def run(self) -> RamDiff:
        a, b = self.a, self.b
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
        self._strides = all_.a.runs.strides
        self._batch = max(1, MIB // block.page_size)

    def run(self) -> None:
        block = self._block
        block.pages = max(ram.pages_of(number) for ram, number in self._sides)
        done = 0
        for page, end, sides in self._together():
            self._nowhere(page - done)
            done = end
            a, b = sides
            if a is None or b is None:
                self._one_side(page, end - page, sides)
            elif a[0] in _EMPTY and b[0] in _EMPTY:
                block.same += end - page
                self._all.done(end - page)
            else:
                self._both(page, end, a, b)
        self._nowhere(block.pages - done)

    def _nowhere(self, count: int) -> None:
        self._block.never += count
        self._all.done(count)

    def _together(self) -> Iterator[tuple[int, int, _Sides]]:
        # The pages that one of the streams has, ``(page, end, copies of the first)``.
        pages = self._block.pages
        none = (pages, 0, 0, 0)
        ours, theirs = (ram.final(block).within(0, pages) for ram, block in self._sides)
        one, other = next(ours, none), next(theirs, none)
        while one[1] or other[1]:
            page = min(one[0], other[0])
            in_a, in_b = one[0] == page, other[0] == page
            end = min(one[0] + one[1] * in_a, other[0] + other[1] * in_b)
            yield page, end, (one[2:] if in_a else None, other[2:] if in_b else None)
            if in_a:
                one = self._rest(one, end) or next(ours, none)
            if in_b:
                other = self._rest(other, end) or next(theirs, none)

    def _rest(self, run: tuple[int, int, int, int], page: int) -> tuple[int, int, int, int] | None:
        # What is left of a run from a page on.
        first, count, kind, data = run
        into = page - first
        if into >= count:
            return None
        return page, count - into, kind, data + into * self._strides[kind]

    def _one_side(self, page: int, count: int, sides: _Sides) -> None:
        self._all.done(count)
        if sides[0] is None:
            self._block.only_b += count
        else:
            self._block.only_a += count
        self._note(page, count, sides, 0)

    def _both(self, page: int, end: int, a: Copy, b: Copy) -> None:
        # Compare pages of which both streams have a copy, one of them not zero.
        steps = self._strides[a[0]], self._strides[b[0]]
        many = self._batch if a[0] in _WHOLE and b[0] in _WHOLE else 1
        for first in range(page, end, many):
            count = min(many, end - first)
            if many == 1 or not self._some(first, count, (a, b)):
                for number in range(count):
                    sides = tuple(
                        (kind, data + number * step)
                        for (kind, data), step in zip((a, b), steps, strict=True)
                    )
                    self._one(first + number, (sides[0], sides[1]))
            a, b = (a[0], a[1] + count * steps[0]), (b[0], b[1] + count * steps[1])
            self._all.done(count)

    def _some(self, page: int, count: int, sides: tuple[Copy, Copy]) -> bool:
        # Compare pages that both streams have as they are; False if they cannot be read.
        size = self._block.page_size
        (kind_a, data_a), (kind_b, data_b) = sides
        step_a, step_b = self._strides[kind_a], self._strides[kind_b]
        try:
            raw_a = memoryview(self._all.a.read_at(unpack(data_a), (count - 1) * step_a + size))
            raw_b = memoryview(self._all.b.read_at(unpack(data_b), (count - 1) * step_b + size))
        except StreamError:
            return False
        # Between the pages are their numbers, which agree.
        if step_a == step_b and raw_a == raw_b:
            self._block.same += count
            return True
        for number in range(count):
            at_a, at_b = number * step_a, number * step_b
            self._compared(
                page + number,
                (raw_a[at_a : at_a + size], raw_b[at_b : at_b + size]),
                ((kind_a, data_a + at_a), (kind_b, data_b + at_b)),
            )
        return True

    def _one(self, page: int, sides: tuple[Copy, Copy]) -> None:
        content = []
        for side, copy, (ram, block) in zip("ab", sides, self._sides, strict=True):
            try:
                content.append(memoryview(ram.page_of(block, page, copy)))
            except StreamError as error:
                self._all.problem(side, error)
        if len(content) == 2:
            self._compared(page, (content[0], content[1]), sides)
        else:
            self._block.unreadable += 1

    def _compared(self, page: int, content: tuple[memoryview, memoryview], sides: _Sides) -> None:
        a, b = content
        if a == b:
            self._block.same += 1
            return
        self._block.different += 1
        both = int.from_bytes(a, "big") ^ int.from_bytes(b, "big")
        self._note(page, 1, sides, len(a) - both.to_bytes(len(a), "big").count(0))

    def _note(self, page: int, count: int, sides: _Sides, different: int) -> None:
        a, b = map(_state, sides)
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
        place_a, place_b = map(_offset, sides)
        self._block.ranges.append(RamRange(page, count, a, b, different, place_a, place_b))


def _offset(copy: Copy | None) -> int | None:
    # Where a copy is in the stream itself, if it is there.
    if copy is None or copy[0] == PageKind.ABSENT:
        return None
    place: Place = unpack(copy[1])
    return place.offset if place.input == 0 else None
