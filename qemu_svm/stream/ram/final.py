"""The final content of each page of RAM.

All copies are gone through once, and for each page the number of the run that
wrote it last is noted, in four bytes; a delta (XBZRLE) remembers which run it
was applied to.  Pages can then be read in any order, each from the copies that
count.
"""

from __future__ import annotations

from array import array

from qemu_svm.stream.ram.coverage import coverage
from qemu_svm.stream.ram.read import Ram
from qemu_svm.stream.ram.runs import NOWHERE, PageKind, Place

NEVER = 0
"""Kind of a page that was never sent; the others are of :class:`PageKind`."""

_WHOLE = (PageKind.PAGE, PageKind.PLACED)


class FinalRam:
    """The content of RAM at the end of a stream.

    :param ram: as read.
    :raises LimitExceeded: the guest has too many pages to examine each.
    """

    def __init__(self, ram: Ram) -> None:
        self.ram = ram
        self.kinds = [part.kinds for part in coverage(ram)]
        """For each block one byte for each page: its last kind, or :data:`NEVER`."""
        # 0 means no run, so the numbers start at 1.
        self._owner = [array("I", bytes(4 * len(kinds))) for kinds in self.kinds]
        self._before = array("I", bytes(4 * (len(ram.runs) + 1)))
        for number, (block, page, count, kind) in enumerate(ram.runs.spans(), 1):
            owner = self._owner[block]
            if kind == PageKind.XBZRLE:
                self._before[number] = owner[page]
            if count == 1:
                owner[page] = number
            else:
                owner[page : page + count] = array("I", (number,)) * count

    def place(self, block: int, page: int) -> Place | None:
        """Return the place of a page's last copy.

        None if the page was never sent, or is zero and stored nowhere.
        """
        owner = self._owner[block][page]
        if not owner:
            return None
        kind, place = self._copy(owner, page)
        return None if kind is PageKind.ABSENT else place

    def whole(self, block: int, page: int, most: int) -> tuple[int, Place, int]:
        """Find pages from ``page`` on that are stored unencoded, at a fixed distance.

        :returns: how many (at most ``most``; 0 if this one is not), the place of the
            first, and the distance in bytes.
        """
        owners = self._owner[block]
        owner = owners[page]
        if not owner:
            return 0, NOWHERE, 0
        first, count, kind, _ = self.ram.runs.at(owner - 1)
        if kind not in _WHOLE:
            return 0, NOWHERE, 0
        most = min(most, first + count - page)
        if owners[page : page + most] != array("I", (owner,)) * most:
            most = next(at for at in range(1, most) if owners[page + at] != owner)
        return most, self._copy(owner, page)[1], self.ram.runs.strides[kind]

    def page(self, block: int, page: int) -> bytes:
        """Return the content of a page; zeros if it was never sent.

        :raises StreamError: the page's data in the stream is damaged.
        """
        owner = self._owner[block][page]
        deltas = []
        content = bytes(self.ram.page_size)
        while owner:
            kind, place = self._copy(owner, page)
            if kind is not PageKind.XBZRLE:
                content = self.ram.content(kind, place)
                break
            deltas.append(place)
            owner = self._before[owner]
        if not deltas:
            return content
        changed = bytearray(content)
        for place in reversed(deltas):
            self.ram.apply(changed, place)
        return bytes(changed)

    def read(self, place: Place, size: int) -> bytes:
        """Return bytes at a place that :meth:`whole` found.

        :raises Truncated: there are fewer.
        """
        return self.ram.read_at(place, size)

    def _copy(self, owner: int, page: int) -> tuple[PageKind, Place]:
        # Kind and place of the copy of ``page`` in run number ``owner``.
        first, _, kind, place = self.ram.runs.at(owner - 1)
        return kind, place.plus((page - first) * self.ram.runs.strides[kind])
