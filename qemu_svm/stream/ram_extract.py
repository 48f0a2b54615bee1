"""The content of RAM blocks, written to files.

All copies of all pages are applied in the order of sending, so the input is
read front to back once.  Zero pages are not written where nothing was before:
the files are sparse.  Whole pages go from the input to the file without being
looked at, many in one call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from qemu_svm.stream.ram_index import Ram
from qemu_svm.stream.ram_runs import INPUT_SHIFT, PageKind

_BATCH = 256  # pages in one read
_MANY = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16
_OFFSET = (1 << INPUT_SHIFT) - 1


def _silent(_done: int) -> None:
    pass


def extract(
    ram: Ram,
    files: Mapping[int, int],
    span: tuple[int, int] | None = None,
    progress: Callable[[int], None] = _silent,
) -> None:
    """Write blocks to files; each gets the length of its block or ``span``.

    :param files: a descriptor, open for reading and writing, of an empty
        file for each block's index.
    :param span: only these bytes of each block, ``(start, end)``, multiples of
        the page size; they start at 0 in the file.
    :param progress: told how many of the copies in the stream are done.
    :raises StreamError: a page is damaged.
    """
    targets = {number: _Target(ram, number, fd, span) for number, fd in files.items()}
    done = 0
    for block, page, count, kind, data in ram.runs.raw():
        target = targets.get(block)
        done += count
        if target is None:
            continue
        target.write(page, count, kind, data)
        progress(done)


class _Target:
    # One block's file; remembers which pages were written.
    def __init__(self, ram: Ram, block: int, fd: int, span: tuple[int, int] | None) -> None:
        self.ram = ram
        self.fd = fd
        size = ram.entries[block].block.used_length
        start, end = span or (0, size)
        end = min(end, size)
        start = min(start, end)
        self.first, self.last = start // ram.page_size, -(-end // ram.page_size)
        self.written = bytearray(self.last - self.first)
        os.ftruncate(fd, end - start)

    def write(self, page: int, count: int, kind: int, data: int) -> None:
        stride = self.ram.runs.strides[PageKind(kind)]
        skip = max(0, self.first - page)
        count = min(count - skip, self.last - page - skip)
        if count <= 0:
            return
        place, data = page + skip - self.first, data + skip * stride
        source, at = data >> INPUT_SHIFT, data & _OFFSET
        size = self.ram.page_size
        if kind in (PageKind.PAGE, PageKind.PLACED):
            self._pages(place, count, source, at, stride)
        elif kind in (PageKind.ZERO, PageKind.ABSENT):
            fill = self.ram.content(PageKind(kind), source, at) if kind == PageKind.ZERO else b""
            if any(fill[:1]) or any(self.written[place : place + count]):
                self._fill(place, count, fill or bytes(size))
            return
        elif kind == PageKind.COMPRESSED:
            _write(self.fd, [self.ram.content(PageKind(kind), source, at)], place * size)
        else:
            content = bytearray(os.pread(self.fd, size, place * size).ljust(size, b"\0"))
            self.ram.apply(content, source, at)
            _write(self.fd, [content], place * size)
        self.written[place : place + count] = b"\1" * count

    def _fill(self, place: int, count: int, content: bytes) -> None:
        size = self.ram.page_size
        for number in range(place, place + count):
            if content[0] or self.written[number]:
                _write(self.fd, [content], number * size)
                self.written[number] = bool(content[0])

    def _pages(self, place: int, count: int, source: int, at: int, stride: int) -> None:
        size = self.ram.page_size
        while count:
            batch = min(count, _BATCH, _MANY)
            block = memoryview(self.ram.read_input(source, at, (batch - 1) * stride + size))
            if stride == size:
                parts = [block]
            else:
                parts = [block[p : p + size] for p in range(0, batch * stride, stride)]
            _write(self.fd, parts, place * size)
            place, count, at = place + batch, count - batch, at + batch * stride


def _write(fd: int, parts: list[memoryview] | list[bytes] | list[bytearray], place: int) -> None:
    wanted = sum(map(len, parts))
    done = os.pwritev(fd, parts, place)
    if done < wanted:  # no room, or a signal: slowly, so that the error shows
        rest = b"".join(parts)[done:]
        place += done
        while rest:
            done = os.pwrite(fd, rest, place)
            rest, place = rest[done:], place + done
