"""Address spaces behind page tables: nested (L2-physical) and virtual.

A space has a parent, where its tables are and where its addresses lead: virtual
memory of L1 has :class:`~qemu_svm.memory.physical.Physical`, L2's physical memory too
(by L1's nested page tables), L2's virtual memory has L2's physical memory.  So in the
last one every access to a table is a walk of its own: the two-dimensional walk.

For single addresses the tables of the last level are kept by the address they
translate, so that most translations take one look into one table.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from itertools import chain

from qemu_svm.errors import AddressError, StreamError
from qemu_svm.limits import DEFAULT
from qemu_svm.memory.paging import (
    ADDRESS,
    NX,
    PS,
    Level,
    P,
    Paging,
    U,
    W,
    is_mmio_mark,
    permitted,
)
from qemu_svm.memory.physical import Physical
from qemu_svm.memory.results import Piece, Run, Status, Step, Walk, fault

_PAGE = 4096
_MOST_REGIONS = 4096
_MOST_TABLES = 1024
_ALIAS_COST = 16  # leaves that one counts for, of a table that was listed before
Leaf = tuple[int, int, int, bool, bool, bool, int]
"""Address, size, target, and W, U, NX of all levels; the entry."""


class Space:
    """An address space that page tables make.

    :param parent: where the tables are, and where the addresses lead.
    :param nested: the tables are L1's for L2: every access is a user's, and KVM's marks
        for MMIO are known.
    :param ac: RFLAGS.AC.
    :param most: pages that are enumerated.
    """

    def __init__(
        self, parent: Physical | Space, paging: Paging, *, world: str, nested: bool = False,
        ac: bool = False, physical_bits: int = 0, most: int = DEFAULT.page_table_leaves,
    ) -> None:  # fmt: skip
        self.parent = parent
        self.paging = paging
        self.world = world
        self.nested = nested
        self._ac = ac
        self._most = most
        self._physical_bits = physical_bits
        self.physical: Physical = parent if isinstance(parent, Physical) else parent.physical
        levels = paging.levels
        self._region_shift = levels[-2].shift if levels else 21
        self._region_mask = (1 << self._region_shift) - 1
        self._index_mask = (1 << levels[-1].bits) - 1 if levels else 0
        self._leaf_mask = 0xFFFF_F000 if paging.entry == 4 else ADDRESS
        must = P | U if nested else P
        self._check = must | (levels[-1].reserved if levels else 0)
        self._want = must
        self._regions: dict[int, array[int] | int] = {}
        self._tables: dict[int, array[int]] = {}
        self._stage = "nested" if nested else "guest"

    # Translation.

    def translate(self, address: int) -> int:
        """The address in the parent, whatever the access.

        :raises AddressError: there is none.
        :raises StreamError: the stream is damaged where a table is.
        """
        region = self._regions.get(address >> self._region_shift)
        if region is not None:
            if region.__class__ is int:
                return region | address & self._region_mask
            entry = region[address >> 12 & self._index_mask]  # type: ignore[index]
            if entry & self._check == self._want:
                found: int = entry & self._leaf_mask | address & 0xFFF
                return found
        return self._slowly(address)

    def locate(self, address: int) -> int:
        """The L1-physical address.

        :raises AddressError: there is none.
        :raises StreamError: the stream is damaged where a table is.
        """
        return self.parent.locate(self.translate(address))

    def _slowly(self, address: int) -> int:
        status, target, level, _ = self._walk(address, "", None)
        if status is not Status.MAPPED:
            raise fault(status, address)
        if len(self._regions) >= _MOST_REGIONS:
            self._regions.clear()
        key = address >> self._region_shift
        if level is None or level.shift >= self._region_shift:
            self._regions[key] = target & ~self._region_mask
        else:
            self._regions[key] = self._last
        return target

    def _bad_address(self, address: int) -> bool:
        paging = self.paging
        if not paging.canonical:
            return not 0 <= address < 1 << paging.width
        if self.nested:  # a guest-physical address is not extended by its sign
            return not 0 <= address < 1 << paging.width
        top = address >> paging.width - 1
        return not (top == 0 or top == (1 << 64 - paging.width + 1) - 1)

    def _walk(
        self, address: int, access: str, steps: list[Step] | None
    ) -> tuple[Status, int, Level | None, tuple[bool, bool, bool, int]]:
        # Status, target, the level of the leaf, and W, U, NX and the last entry.
        paging = self.paging
        none = (True, True, False, 0)
        if self._bad_address(address):
            if paging.canonical and not self.nested:
                return Status.NOT_CANONICAL, 0, None, none
            return Status.NOT_PRESENT, 0, None, none
        if not paging.levels:
            return Status.MAPPED, address, None, none
        table, writable, user, nx = paging.root, True, True, False
        for level in paging.levels:
            index = address >> level.shift & (1 << level.bits) - 1
            entry, status, below = self._entry(table, index, access, steps)
            leaf = level.number == 1 or bool(level.leaf is not None and entry & PS)
            if steps is not None:
                names = paging.names(entry, level, leaf=leaf)
                known = entry if status is Status.MAPPED else None
                step = Step(self._stage, level.number, table, index, known, names)
                steps += [step, *below]
            if status is Status.MAPPED and not entry & P:
                status = Status.NOT_PRESENT
            if status is Status.MAPPED:
                status = self._valid(entry, level, address, leaf=leaf)
            if status is not Status.MAPPED:
                return status, 0, None, none
            if not (level.number == 3 and paging.name == "PAE"):
                writable &= bool(entry & W)
                user &= bool(entry & U)
                nx |= bool(entry & NX) and paging.entry == 8
            if leaf:
                target = paging.leaf_address(entry, level) | address & (1 << level.shift) - 1
                flags = writable, user, nx, entry
                if not self._permitted(access, writable=writable, user=user, nx=nx):
                    return Status.PERMISSION, target, level, flags
                return Status.MAPPED, target, level, flags
            table = paging.table_address(entry)
        raise AssertionError("the last level is a leaf")

    def _permitted(self, access: str, *, writable: bool, user: bool, nx: bool) -> bool:
        if self.nested:
            return user and (writable or "w" not in access) and not (nx and "x" in access)
        return permitted(self.paging, access, writable=writable, user=user, nx=nx, ac=self._ac)

    def _valid(self, entry: int, level: Level, address: int, *, leaf: bool) -> Status:
        reserved = level.reserved if level.number == 1 or not leaf else level.leaf or 0
        if not entry & reserved:
            return Status.MAPPED
        last = self.nested and level.number == 1
        mark = last and is_mmio_mark(entry, address, self._physical_bits)
        return Status.MMIO if mark else Status.RESERVED

    def _entry(
        self, table: int, index: int, access: str, steps: list[Step] | None
    ) -> tuple[int, Status, list[Step]]:
        # An entry of a table, whether it could be read, and the steps of getting there.
        below: list[Step] = []
        place = table + index * self.paging.entry
        if steps is not None:
            # To the processor, reading a guest's table is a write by a user: it may set A and D.
            status = self.parent.resolve(place, "w" if access else "", below)
            if status is not Status.MAPPED:
                return 0, status, below
        try:
            entries = self._table(table)
        except AddressError as error:
            return 0, Status(error.status), below
        except StreamError:
            return 0, Status.DAMAGED, below
        self._last = entries
        return entries[index], Status.MAPPED, below

    def _table(self, table: int) -> array[int]:
        found = self._tables.get(table)
        if found is None:
            # The first table of PAE has four entries and need not fill a page.
            size = _PAGE if not table & 0xFFF else 32
            if size == 32 and (table & 0xFFF) + size > _PAGE:
                raise fault(Status.NOT_PRESENT, table)
            found = array("Q" if self.paging.entry == 8 else "I", self.parent.read(table, size))
            if sys.byteorder == "big":
                found.byteswap()
            while len(self._tables) >= _MOST_TABLES:
                del self._tables[next(iter(self._tables))]
            self._tables[table] = found
        return found

    def resolve(self, address: int, access: str, steps: list[Step]) -> Status:
        """Walk to L1-physical memory, as part of another walk; adds its steps."""
        status, target, _, _ = self._walk(address, access, steps)
        if status is Status.MAPPED:
            status = self.parent.resolve(target, access, steps)
        return status

    def walk(self, address: int, access: str = "") -> Walk:
        """The whole translation with every step.

        :param access: letters of ``rwxu``: read, write, execute, as a user; without one,
            permissions do not matter.
        """
        steps: list[Step] = []
        status, target, level, flags = self._walk(address, access, steps)
        size = None if level is None else 1 << level.shift
        names = self._flags(level, flags) if level is not None else ()
        unmapped = self.nested and not flags[1]  # without U no access is a user's
        if status not in (Status.MAPPED, Status.PERMISSION) or unmapped:
            return Walk(status, steps=tuple(steps))
        if isinstance(self.parent, Physical):
            if status is Status.MAPPED:
                status = self.parent.state(target)
            l2 = address if self.nested else target if self.world == "l2v" else None
            return Walk(status, target, l2, size or _PAGE, names, tuple(steps))
        if status is Status.PERMISSION:
            below = self.parent.walk(target)
            return Walk(status, below.address, target, size, names, (*steps, *below.steps))
        below = self.parent.walk(target, access.replace("u", ""))
        sizes = [one for one in (size, below.size) if one is not None]
        return Walk(
            below.status, below.address, target, min(sizes, default=None),
            names or below.flags, (*steps, *below.steps),
        )  # fmt: skip

    def _flags(self, level: Level, found: tuple[bool, bool, bool, int]) -> tuple[str, ...]:
        *effective, entry = found
        names = self.paging.names(entry, level, leaf=True)
        names = tuple(one for one in names if one not in ("P", "W", "U", "NX"))
        return (*_permissions(*effective), *names)

    # Reading.

    def read(self, address: int, size: int) -> bytes:
        """Return ``size`` bytes.

        :raises AddressError: some of it is not mapped, not RAM, or was never sent.
        :raises StreamError: what the stream has for it is damaged.
        """
        if address < 0 or size < 0:
            raise AddressError("a negative address or size", address=address)
        parts = []
        while size:
            many = min(size, _PAGE - (address & 0xFFF))
            parts.append(self._part(address, many))
            address, size = address + many, size - many
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, address: int, size: int) -> bytes:
        try:
            return self.parent.read(self.translate(address), size)
        except AddressError as error:
            raise fault(Status(error.status), address) from error

    def read_u64(self, address: int) -> int:
        """Return the eight bytes at an address as a little-endian number.

        :raises AddressError: as for :meth:`read`.
        :raises StreamError: as for :meth:`read`.
        """
        if address & 0xFFF > 0xFF8:
            return int.from_bytes(self.read(address, 8), "little")
        try:
            return self.physical.read_u64(self.locate(address))
        except AddressError as error:
            raise fault(Status(error.status), address) from error

    def pieces(self, address: int, size: int) -> Iterator[Piece]:
        """Memory and what is missing of it, in order; never raises for either."""
        end = min(address + size, 1 << 64)
        while address < end:
            many = min(end - address, _PAGE - (address & 0xFFF))
            try:
                place = self.locate(address)
            except AddressError as error:
                status = Status(error.status)
                many = min(end - address, self._hole(address))
                yield Piece(address, many, status)
            except StreamError:
                yield Piece(address, many, Status.DAMAGED)
            else:
                for piece in self.physical.pieces(place, many):
                    yield Piece(address + piece.address - place, piece.size, piece.status,
                                piece.data)  # fmt: skip
            address += many

    def _hole(self, address: int) -> int:
        # To the end of what the entry that is not there would have mapped.
        steps: list[Step] = []
        self._walk(address, "", steps)
        ours = [step for step in steps if step.stage == self._stage]
        last = ours[-1].entry if ours else None
        if last is not None and not last & P:
            below = (1 << self.paging.levels[len(ours) - 1].shift) - 1
            return below + 1 - (address & below)
        return _PAGE - (address & 0xFFF)

    # Enumeration.

    def leaves(self, most: int | None = None) -> Iterator[Leaf]:
        """Every mapped page, in order of addresses.

        Stops after ``most`` leaves, where :meth:`runs` and :meth:`ranges` raise an error.
        """
        yield from _Listing(self, self._most if most is None else most).leaves()

    def runs(self, most: int | None = None) -> Iterator[Run]:
        """Mapped pages, merged where both addresses and targets follow one another.

        :raises AddressError: of status ``limit`` after ``most`` leaves.
        """
        yield from _Listing(self, self._most if most is None else most).runs(targets=True)

    def ranges(self, most: int | None = None) -> Iterator[Run]:
        """Mapped pages, merged where the permissions are the same.

        :raises AddressError: of status ``limit`` after ``most`` leaves.
        """
        yield from _Listing(self, self._most if most is None else most).runs(targets=False)


def _permissions(writable: bool, user: bool, nx: bool) -> tuple[str, ...]:  # noqa: FBT001
    return (*("W",) * writable, *("U",) * user, *("NX",) * nx)


class _Listing:
    # One enumeration of a space, with its limit.
    def __init__(self, space: Space, most: int) -> None:
        self._space = space
        self._paging = space.paging
        self._left = most
        self._listed: set[int] = set()
        self.stopped_at: int | None = None

    def leaves(self) -> Iterator[Leaf]:
        for start, size, target, writable, user, nx, entry in self._parts():
            page = 1 << 12 if size > 0 else -size
            many = size // page if size > 0 else 1
            for at in range(many):
                yield (start + at * page, page, target + at * page, writable, user, nx, entry)

    def runs(self, *, targets: bool) -> Iterator[Run]:
        last: tuple[int, int, int, bool, bool, bool] | None = None
        for start, signed, target, writable, user, nx, _ in self._parts():
            size = abs(signed)
            if last is not None:
                first, many, to, *flags = last
                if (
                    first + many == start
                    and flags == [writable, user, nx]
                    and (not targets or to + many == target)
                ):
                    last = (first, many + size, to, writable, user, nx)
                    continue
                yield self._run(last, targets=targets)
            last = (start, size, target, writable, user, nx)
        if last is not None:
            yield self._run(last, targets=targets)
        if self.stopped_at is not None:
            raise fault(Status.LIMIT, self.stopped_at)

    def _run(self, one: tuple[int, int, int, bool, bool, bool], *, targets: bool) -> Run:
        start, size, target, writable, user, nx = one
        return Run(start, size, target if targets else None, _permissions(writable, user, nx))

    def _parts(self) -> Iterator[Leaf]:
        # Leaves; a table of pages that follow one another as one (a size that is positive
        # counts pages of 4 KiB, a large page has its size negative).
        if not self._paging.levels:
            yield 0, 1 << 32, 0, True, True, False, 0
            return
        yield from self._table(0, self._paging.root, 0, (True, True, False))

    def _table(
        self, depth: int, table: int, base: int, above: tuple[bool, bool, bool]
    ) -> Iterator[Leaf]:
        paging = self._paging
        level = paging.levels[depth]
        try:
            entries = self._space._table(table)  # noqa: SLF001 - its own listing
        except (AddressError, StreamError):
            return
        count = min(len(entries), 1 << level.bits)
        if level.number == 1:
            yield from self._last(table, entries, count, base, above)
            return
        skipped = level.number == 3 and paging.name == "PAE"
        for index in range(count):
            entry = entries[index]
            if not entry & P:
                continue
            if self._left <= 0:
                self.stopped_at = base if self.stopped_at is None else self.stopped_at
                return
            leaf = level.leaf is not None and bool(entry & PS)
            reserved = (level.leaf or 0) if leaf else level.reserved
            if entry & reserved:
                continue
            address = self._signed(base | index << level.shift)
            flags = above if skipped else (
                above[0] and bool(entry & W), above[1] and bool(entry & U),
                above[2] or (paging.entry == 8 and bool(entry & NX)),
            )  # fmt: skip
            if self._space.nested and not flags[1]:
                continue
            self._left -= 1
            if leaf:
                target = paging.leaf_address(entry, level)
                yield address, -(1 << level.shift), target, *flags, entry
            else:
                yield from self._table(depth + 1, paging.table_address(entry), address, flags)

    def _last(
        self, table: int, entries: array[int], count: int, base: int,
        above: tuple[bool, bool, bool],
    ) -> Iterator[Leaf]:  # fmt: skip
        paging, level = self._paging, self._paging.levels[-1]
        wide = paging.entry == 8
        first = entries[0]
        if first & self._space._check == self._space._want:  # noqa: SLF001
            whole = range(first, first + (count << 12), _PAGE)
            if whole[-1] < 1 << 8 * paging.entry and entries == array(entries.typecode, whole):
                # All of them follow one another and have the same bits.
                flags = self._flags(first, above, wide=wide)
                self._left -= count
                if not (self._space.nested and not flags[1]):
                    yield base, count << 12, paging.leaf_address(first, level), *flags, first
                return
        if not any(entries):
            return
        check, want = self._space._check, self._space._want  # noqa: SLF001
        mask = self._space._leaf_mask  # noqa: SLF001
        if self._left <= 0:
            self.stopped_at = base if self.stopped_at is None else self.stopped_at
            return
        if table in self._listed:
            self._left -= count * (_ALIAS_COST - 1)
        self._listed.add(table)
        start = run = -1
        for index, entry in enumerate(chain(entries, (0,))):
            if run >= 0 and entry == run and index < count:
                run += _PAGE
                continue
            if run >= 0:
                one = entries[start]
                flags = self._flags(one, above, wide=wide)
                self._left -= index - start
                if not (self._space.nested and not flags[1]):
                    yield base + (start << 12), index - start << 12, one & mask, *flags, one
                run = -1
            if index < count and entry & check == want:
                start, run = index, entry + _PAGE

    def _flags(
        self, entry: int, above: tuple[bool, bool, bool], *, wide: bool
    ) -> tuple[bool, bool, bool]:
        return (
            above[0] and bool(entry & W), above[1] and bool(entry & U),
            above[2] or (wide and bool(entry & NX)),
        )  # fmt: skip

    def _signed(self, address: int) -> int:
        paging = self._paging
        if paging.canonical and not self._space.nested and address >> paging.width - 1 & 1:
            return address | (1 << 64) - (1 << paging.width)
        return address
