"""The content of RAM blocks, written to files.

Only the last copy of each page is read and written, in the order of the pages, and zero
pages are not written at all: the files are sparse.  Unencoded pages are copied from the
input to the file, many in one call; by the compiled module if the input is a file.
"""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence

from qemu_svm.errors import EnvironmentFault
from qemu_svm.limits import KIB, MIB
from qemu_svm.stream.ram import compiled
from qemu_svm.stream.ram.read import Ram
from qemu_svm.stream.ram.runs import KIND, KIND_BITS, Columns, PageKind, Place, unpack
from qemu_svm.stream.ram.scan import LARGEST

_WINDOW = MIB
_NEAR = 64 * KIB
_PORTION = 1 << 14  # pages between calls of progress; Ctrl-C waits for them
_WHOLE = (int(PageKind.PAGE), int(PageKind.PLACED))
_EMPTY = (int(PageKind.ZERO), int(PageKind.ABSENT))
_COPIED = frozenset((*_WHOLE, *_EMPTY))


def _silent(_done: int) -> None:
    pass


def span_of(ram: Ram, block: int, span: tuple[int, int] | None) -> tuple[int, int]:
    """Return the bytes of a block that are inside ``span``, ``(start, end)``."""
    size = ram.entries[block].block.used_length
    start, end = span or (0, size)
    end = min(end, size)
    return min(start, end), end


def pages_of(ram: Ram, block: int, span: tuple[int, int] | None) -> tuple[int, int]:
    """Return the pages of a block that are inside ``span``: the first, and that after the last."""
    start, end = span_of(ram, block, span)
    return start // ram.page_size, -(-end // ram.page_size)


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
    :param progress: called with the number of pages in the stream that are done.
    :raises StreamError: a page is damaged.
    :raises EnvironmentFault: the file system holds no file of that length.
    """
    ahead = _Ahead(ram)
    done = 0
    for block, fd in files.items():
        start, end = span_of(ram, block, span)
        first, last = pages_of(ram, block, span)
        target = _Target(ram, block, fd, (first, last), ahead)
        _set_length(fd, end - start, ram.blocks[block].name)
        for rows in ram.final(block).rows(first, last):
            shown = done
            for portion in _portions(rows, ram.runs.strides):
                target.write(*portion)
                shown += sum(portion[1])
                progress(shown)
            done += sum(rows[1])
        os.ftruncate(fd, end - start)  # a block may end inside its last page


def _set_length(fd: int, length: int, name: str) -> None:
    try:
        os.ftruncate(fd, length)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EFBIG, errno.EINVAL):
            raise
        raise EnvironmentFault(
            f"the file system holds no file of {length:#x} bytes, the length of RAM block '{name}'",
            hint="write part of it with --range, or into a directory of another file system",
        ) from error


def _portions(runs: Columns, strides: Mapping[int, int]) -> Iterator[Columns]:
    # The same runs in portions; long runs are split.
    if sum(runs[1]) <= _PORTION:
        yield runs
        return
    rows, pages = (array("Q"), array("I"), array("Q")), 0
    for place, count, data in zip(*runs, strict=True):
        if place & KIND in _EMPTY:
            continue
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
    # One block's file.
    def __init__(
        self, ram: Ram, block: int, fd: int, pages: tuple[int, int], ahead: _Ahead
    ) -> None:
        self.ram = ram
        self.block = block
        self.fd = fd
        self.ahead = ahead
        self.strides = ram.runs.strides
        self.first, self.length = pages[0], pages[1] - pages[0]

    def write(self, where: Sequence[int], counts: Sequence[int], datas: Sequence[int]) -> None:
        """Write runs of pages, in the form of :class:`~qemu_svm.stream.ram.runs.RamRuns`."""
        row, rows = 0, len(where)
        while row < rows:
            if self.ahead.files is not None and where[row] & KIND in _COPIED:
                # Up to the first run that it does not support, or that fails.
                row = compiled.ram.copy(
                    self.ahead.files, self.fd, self.first, self.length, self.ram.page_size,
                    where, counts, datas, row,
                )  # fmt: skip
                if row == rows:
                    return
            self._run(where[row] >> KIND_BITS, counts[row], where[row] & KIND, datas[row])
            row += 1

    def _run(self, page: int, count: int, kind: int, data: int) -> None:
        size, stride = self.ram.page_size, self.strides[kind]
        if kind in _WHOLE:
            self._pages(page - self.first, count, unpack(data), stride)
        elif kind not in _EMPTY:
            for number in range(count):
                copy = kind, data + number * stride
                found = self.ram.page_of(self.block, page + number, copy)
                _write(self.fd, [found], (page + number - self.first) * size)

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
