"""What each page of RAM holds at the end.

All copies are gone through once, and for each page the number of the run that
wrote it last is noted, in four bytes; a difference (XBZRLE) remembers which run
it was applied to.  Pages can then be read in whatever order, each from the
copies that count.
"""

from __future__ import annotations

from array import array

from qemu_svm.stream.ram.coverage import coverage
from qemu_svm.stream.ram.read import Ram
from qemu_svm.stream.ram.runs import INPUT_SHIFT, PageKind

NEVER = 0
"""Kind of a page that was never sent; the others are of :class:`PageKind`."""

_OFFSET = (1 << INPUT_SHIFT) - 1
_WHOLE = (PageKind.PAGE, PageKind.PLACED)


class FinalRam:
    """The content of RAM at the end of a stream.

    :param ram: as read.
    :raises LimitExceeded: the guest is too large to look at every page.
    """

    def __init__(self, ram: Ram) -> None:
        self.ram = ram
        self.kinds = [part.kinds for part in coverage(ram)]
        """For each block a byte for each page: its last kind."""
        # 0 is no run, so the numbers start at 1.
        self._owner = [array("I", bytes(4 * len(kinds))) for kinds in self.kinds]
        self._before = array("I", bytes(4 * (len(ram.runs) + 1)))
        for number, (block, page, count, kind, _) in enumerate(ram.runs.raw(), 1):
            owner = self._owner[block]
            if kind == PageKind.XBZRLE:
                self._before[number] = owner[page]
            if count == 1:
                owner[page] = number
            else:
                owner[page : page + count] = array("I", (number,)) * count

    def place(self, block: int, page: int) -> tuple[int, int] | None:
        """Where a page's last copy stands: number of the input, and offset.

        None if it was never sent, or is zero and stands nowhere.
        """
        owner = self._owner[block][page]
        if not owner or self._run(owner)[2] == PageKind.ABSENT:
            return None
        data = self._data(owner, page)
        return data >> INPUT_SHIFT, data & _OFFSET

    def whole(self, block: int, page: int, most: int) -> tuple[int, int, int]:
        """Pages from ``page`` on that stand as they are, at a fixed distance.

        :returns: how many (at most ``most``; 0 if this one does not), where the
            first is (as the runs have it), and the distance.
        """
        owners = self._owner[block]
        owner = owners[page]
        if not owner:
            return 0, 0, 0
        first, count, kind, _ = self._run(owner)
        if kind not in _WHOLE:
            return 0, 0, 0
        most = min(most, first + count - page)
        if owners[page : page + most] != array("I", (owner,)) * most:
            most = next(at for at in range(1, most) if owners[page + at] != owner)
        return most, self._data(owner, page), self.ram.runs.strides[PageKind(kind)]

    def page(self, block: int, page: int) -> bytes:
        """The content of a page; zeros if it was never sent.

        :raises StreamError: what the stream has for it is damaged.
        """
        owner = self._owner[block][page]
        deltas = []
        while owner and self._run(owner)[2] == PageKind.XBZRLE:
            deltas.append(self._data(owner, page))
            owner = self._before[owner]
        content = bytes(self.ram.page_size)
        if owner:
            kind, data = PageKind(self._run(owner)[2]), self._data(owner, page)
            content = self.ram.content(kind, data >> INPUT_SHIFT, data & _OFFSET)
        if not deltas:
            return content
        changed = bytearray(content)
        for data in reversed(deltas):
            self.ram.apply(changed, data >> INPUT_SHIFT, data & _OFFSET)
        return bytes(changed)

    def read(self, data: int, size: int) -> bytes:
        """Bytes at a place that :meth:`whole` gave.

        :raises Truncated: there are fewer.
        """
        return self.ram.read_input(data >> INPUT_SHIFT, data & _OFFSET, size)

    def _run(self, owner: int) -> tuple[int, int, int, int]:
        return self.ram.runs.at(owner - 1)

    def _data(self, owner: int, page: int) -> int:
        first, _, kind, data = self._run(owner)
        return data + (page - first) * self.ram.runs.strides[PageKind(kind)]
