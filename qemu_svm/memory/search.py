"""A byte pattern in guest memory, also across the borders of pages."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qemu_svm.errors import AddressError, StreamError
from qemu_svm.memory.physical import NEVER, NOTHING, ZERO, Physical
from qemu_svm.memory.results import Run
from qemu_svm.memory.spaces import Space

if TYPE_CHECKING:
    from qemu_svm.memory.memory import GuestMemory

_BLOCK = 1 << 20
_MOST_RUNS = 1 << 18
_PAGE = 4096
_LARGE = 1 << 44


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a pattern was found.

    :param address: in the world that was searched.
    :param l1_physical: of its first byte.
    """

    address: int
    l1_physical: int


def search(space: Physical | Space, pattern: bytes) -> Iterator[Hit]:
    """Every place of a pattern, in the order of addresses; overlapping ones too.

    Pages that cannot be read are passed over.

    :raises AddressError: of status ``limit``: the page tables have too many entries.
    """
    if not pattern:
        return
    rest, rest_at, rest_places = b"", -1, [(0, 0)]
    for address, place, data in _blocks(space, _Wanted(len(pattern), any(pattern))):
        if rest_at + len(rest) != address:
            rest, rest_places = b"", []
            rest_at = address
        joined = rest + data if rest else data
        rest_places.append((address, place))
        at = joined.find(pattern)
        while at >= 0:
            found = rest_at + at
            yield Hit(found, _place(rest_places, found))
            at = joined.find(pattern, at + 1)
        keep = min(len(pattern) - 1, len(joined))
        rest = joined[len(joined) - keep :]
        rest_at += len(joined) - keep
        first = bisect_right(rest_places, rest_at, key=lambda one: one[0]) - 1
        rest_places = rest_places[max(first, 0) :]


def _place(places: list[tuple[int, int]], address: int) -> int:
    start, place = places[bisect_right(places, address, key=lambda one: one[0]) - 1]
    return place + address - start


@dataclass(frozen=True, slots=True)
class _Wanted:
    # What matters of a pattern where zeros are passed over.
    length: int
    solid: bool  # not nothing but zeros


def _blocks(space: Physical | Space, wanted: _Wanted) -> Iterator[tuple[int, int, bytes]]:
    # Address, L1-physical address, content; in order.
    if isinstance(space, Physical):
        for one in space.ranges:
            yield from _physical(space, one.start, one.start, one.size, wanted)
        return
    for run in space.runs():
        yield from _below(space, run, wanted)


def _below(space: Space, run: Run, wanted: _Wanted) -> Iterator[tuple[int, int, bytes]]:
    # A run of a space, through the spaces below it.
    parent, target = space.parent, run.target or 0
    if isinstance(parent, Physical):
        yield from _physical(parent, run.start, target, run.size, wanted)
        return
    if run.size > _LARGE:
        return  # nobody has that much; an identity map of everything, say
    for at in range(0, run.size, _PAGE):
        try:
            place = parent.translate(target + at)
        except (AddressError, StreamError):
            continue
        many = min(_PAGE, run.size - at)
        yield from _physical(space.physical, run.start + at, place, many, wanted)


def _physical(
    physical: Physical, address: int, place: int, size: int, wanted: _Wanted
) -> Iterator[tuple[int, int, bytes]]:
    page = physical.page_size
    end = place + size
    for extent in physical.extents(place & ~(page - 1), end + page - 1 & ~(page - 1)):
        if extent.word in (NEVER, NOTHING):
            continue
        low, high = max(place, extent.address), min(end, extent.address + extent.size)
        at, length = address + low - place, wanted.length
        if extent.word == ZERO and wanted.solid and high - low > 2 * length:
            # Zeros count only where the pattern reaches into them.
            yield at, low, bytes(length)
            yield at + high - low - length, high - length, bytes(length)
            continue
        try:
            for start, data in physical.content(extent, _BLOCK):
                first, last = max(low, start), min(high, start + len(data))
                if first < last:
                    part = data[first - start : last - start]
                    yield address + first - place, first, part
        except StreamError:
            for piece in physical.pieces(low, high - low):
                if piece.data:
                    yield address + piece.address - place, piece.address, piece.data


class Reverse:
    """Which L2-physical addresses lead to an L1-physical one.

    :param space: L2's physical memory.
    """

    def __init__(self, space: Space) -> None:
        self.complete = True
        self._runs: list[tuple[int, int, int]] = []
        try:
            for run in space.runs():
                if len(self._runs) >= _MOST_RUNS:
                    self.complete = False
                    break
                self._runs.append((run.target or 0, run.size, run.start))
        except AddressError:
            self.complete = False
        self._runs.sort()
        self._longest = max((size for _, size, _ in self._runs), default=0)

    def addresses(self, place: int, most: int = 16) -> list[int]:
        """L2-physical addresses of an L1-physical one, at most so many."""
        found: list[int] = []
        at = bisect_right(self._runs, (place, 1 << 64, 0)) - 1
        while at >= 0 and self._runs[at][0] + self._longest > place and len(found) < most:
            target, size, start = self._runs[at]
            if target <= place < target + size:
                found.append(start + place - target)
            at -= 1
        return sorted(found)


@dataclass(frozen=True, slots=True)
class Found:
    """A hit, and where an L2 sees the same byte.

    :param l2_physical: root of the nested page tables and L2-physical address, for each L2
        that a vCPU runs.
    """

    hit: Hit
    l2_physical: tuple[tuple[int, int], ...]


class Locator:
    """Finds the L2-physical addresses of L1-physical ones, for every L2 that a vCPU runs."""

    def __init__(self, memory: GuestMemory) -> None:
        self._reverse: dict[int, Reverse] = {}
        for vcpu in memory.machine.vcpus:
            root = memory.l2_root(vcpu.index)
            if root is not None and root not in self._reverse:
                space = memory.world("l2p", vcpu.index)
                assert isinstance(space, Space)
                self._reverse[root] = Reverse(space)

    def locate(self, hit: Hit) -> Found:
        """Return a hit with its L2-physical addresses."""
        l2 = (
            (root, address)
            for root, reverse in self._reverse.items()
            for address in reverse.addresses(hit.l1_physical)
        )
        return Found(hit, tuple(l2))
