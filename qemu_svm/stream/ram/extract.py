"""The content of RAM blocks, written to files.

All copies of all pages are applied in the order of sending, so the input is read
once, front to back.  Zero pages are written only over earlier content: the files are
sparse.  Unencoded pages are copied from the input to the file, many in one call; by
the compiled module if the input is a file.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence

from qemu_svm.limits import KIB, MIB
from qemu_svm.stream.ram import compiled
from qemu_svm.stream.ram.coverage import check_number
from qemu_svm.stream.ram.read import Ram
from qemu_svm.stream.ram.runs import KIND, KIND_BITS, PageKind, Place, unpack
from qemu_svm.stream.ram.scan import LARGEST

_WINDOW = MIB
_NEAR = 64 * KIB
_PORTION = 1 << 14  # pages between calls of progress; Ctrl-C waits for them
_WHOLE = (int(PageKind.PAGE), int(PageKind.PLACED))
_EMPTY = (int(PageKind.ZERO), int(PageKind.ABSENT))
_COPIED = frozenset((*_WHOLE, *_EMPTY))


def _silent(_done: int) -> None:
    pass


def extract(
    ram: Ram,
    files: Mapping[int, int],
    span: tuple[int, int] | None = None,
    progress: Callable[[int], None] = _silent,
) -> None:
    """Write blocks to files, which get the length of the block or of ``span``.

    :param files: a descriptor, open for reading and writing, of an empty
        file for each block's index.
    :param span: only these bytes of each block, ``(start, end)``, multiples of
        the page size; they start at 0 in the file.
    :param progress: called with the number of copies in the stream that are done.
    :raises StreamError: a page is damaged, or there are too many.
    """
    ahead = _Ahead(ram)
    targets = {number: _Target(ram, number, fd, span, ahead) for number, fd in files.items()}
    done = 0
    for block, *runs in ram.runs.pieces():
        for portion in _portions(runs, ram.runs.strides):
            if block in targets:
                targets[block].write(*portion)
            done += sum(portion[1])
            progress(done)
    for target in targets.values():
        os.ftruncate(target.fd, target.length)  # a block may end inside its last page


def _portions(
    runs: Sequence[array[int]], strides: Mapping[int, int]
) -> Iterator[Sequence[array[int]]]:
    # The same runs (where, count, data) in portions; long runs are split.
    if sum(runs[1]) <= _PORTION:
        yield runs
        return
    rows, pages = (array("Q"), array("I"), array("Q")), 0
    for place, count, data in zip(*runs, strict=True):
        for done in range(0, count, _PORTION // 4):
            part = min(_PORTION // 4, count - done)
            if pages + part > _PORTION:
                yield rows
                rows, pages = (array("Q"), array("I"), array("Q")), 0
            rows[0].append(place + (done << KIND_BITS))
            rows[1].append(part)
            rows[2].append(data + done * strides[place & KIND])
            pages += part
    yield rows


def input_files(ram: Ram) -> array[int] | None:
    """Return the inputs as the compiled part needs them; None without it.

    For each input its descriptor, -1 if it is not a file, and where it starts there.
    """
    if compiled.ram is None or ram.page_size > LARGEST:
        return None
    files = [source.backing_file() or (-1, 0) for source in ram.inputs]
    return array("q", [number for file in files for number in file])


class _Ahead:
    # Input that is read in order, in large pieces; single pages far from the last
    # piece (as with mapped-ram) are read alone.
    def __init__(self, ram: Ram) -> None:
        self._ram = ram
        self._blocks = [(0, memoryview(b""))] * len(ram.inputs)
        self._look = 0
        self.files = input_files(ram)

    def view(self, place: Place, least: int, most: int) -> memoryview:
        # From ``least`` to ``most`` bytes.
        source, at = place
        base, block = self._blocks[source]
        start = at - base
        if start >= 0 and start + least <= len(block):
            return block[start : start + most]
        near = 0 <= start <= len(block) + _NEAR
        self._look = min(_WINDOW, max(_NEAR, 4 * self._look)) if near else 0
        del block
        self._blocks[source] = 0, memoryview(b"")  # free the old one first
        size = max(self._look, min(most, _WINDOW), least)
        block = memoryview(self._ram.inputs[source].read_at(at, size))
        if len(block) < least:
            self._ram.read_at(place, least)  # raises the error
        self._blocks[source] = at, block
        return block[:most]


class _Target:
    # One block's file; remembers which pages were written.
    def __init__(
        self, ram: Ram, block: int, fd: int, span: tuple[int, int] | None, ahead: _Ahead
    ) -> None:
        self.ram = ram
        self.fd = fd
        self.ahead = ahead
        self.strides = ram.runs.strides
        self.batch = max(1, _WINDOW // ram.page_size)
        size = ram.entries[block].block.used_length
        start, end = span or (0, size)
        end = min(end, size)
        start = min(start, end)
        self.first, self.last = start // ram.page_size, -(-end // ram.page_size)
        check_number(ram, self.last - self.first)
        self.written = bytearray(self.last - self.first)
        self.length = end - start
        os.ftruncate(fd, self.length)

    def write(self, where: array[int], counts: array[int], datas: array[int]) -> None:
        """Apply runs of one sweep, in the form of :class:`~qemu_svm.stream.ram.runs.RamRuns`."""
        row, rows = 0, len(where)
        while row < rows:
            if self.ahead.files is not None and where[row] & KIND in _COPIED:
                # Up to the first run that it does not support, or that fails.
                row = compiled.ram.copy(
                    self.ahead.files, self.fd, self.first, self.written, self.ram.page_size,
                    where, counts, datas, row,
                )  # fmt: skip
                if row == rows:
                    return
            self._inside(where[row], counts[row], datas[row])
            row += 1

    def _inside(self, place: int, pages: int, data: int) -> None:
        # The part of a run that is inside the span.
        page, kind, length = (place >> KIND_BITS) - self.first, place & KIND, len(self.written)
        skip = max(0, -page)
        rest = min(pages - skip, length - page - skip)
        if rest > 0:
            self._run(page + skip, rest, kind, data + skip * self.strides[kind])

    def _run(self, page: int, count: int, kind: int, data: int) -> None:
        place = unpack(data)
        size, stride = self.ram.page_size, self.strides[kind]
        if kind in _WHOLE:
            self._pages(page, count, place, stride)
        elif kind in _EMPTY:
            self._clear(page, count)
            return
        elif kind == PageKind.XBZRLE:
            content = bytearray(os.pread(self.fd, size, page * size).ljust(size, b"\0"))
            self.ram.apply(content, place)
            _write(self.fd, [content], page * size)
        else:
            for number in range(count):
                found = self.ram.content(PageKind(kind), place.plus(number * stride))
                _write(self.fd, [found], (page + number) * size)
        if count == 1:
            self.written[page] = 1
        else:
            self.written[page : page + count] = b"\1" * count

    def _clear(self, page: int, count: int) -> None:
        # Write zeros over earlier content.
        size, end = self.ram.page_size, page + count
        start = self.written.find(1, page, end)
        while start >= 0:
            stop = self.written.find(0, start, end)
            stop = end if stop < 0 else stop
            for place in range(start, stop, self.batch):
                many = min(self.batch, stop - place)
                _write(self.fd, [bytes(many * size)], place * size)
            self.written[start:stop] = bytes(stop - start)
            start = self.written.find(1, stop, end)

    def _pages(self, page: int, count: int, place: Place, stride: int) -> None:
        size = self.ram.page_size
        while count:
            block = self.ahead.view(place, size, (count - 1) * stride + size)
            batch = (len(block) - size) // stride + 1
            if batch == 1 or stride == size:
                parts = [block[: batch * size]]
            else:
                parts = [block[p : p + size] for p in range(0, batch * stride, stride)]
            _write(self.fd, parts, page * size)
            page, count, place = page + batch, count - batch, place.plus(batch * stride)


def _write(fd: int, parts: Sequence[memoryview | bytes | bytearray], place: int) -> None:
    wanted = sum(map(len, parts))
    done = os.pwritev(fd, parts, place)
    if done < wanted:  # disk full, or a signal: retry, so that the error is raised
        rest = b"".join(parts)[done:]
        place += done
        while rest:
            done = os.pwrite(fd, rest, place)
            rest, place = rest[done:], place + done
