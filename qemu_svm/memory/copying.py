"""Guest memory written into a file at another offset; what is zero or missing is a hole.

Whole pages are copied by the compiled part that extraction has too.  Without it they go
from the input's file into the other with two calls for a few of them: one that reads
them with the headers between, one that writes them without.
"""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from qemu_svm.memory.physical import ENCODED, FIRST_PLACE, Extent, Physical
from qemu_svm.stream.ram import compiled
from qemu_svm.stream.ram.extract import input_files
from qemu_svm.stream.ram.runs import KIND_BITS, PageKind, unpack

if TYPE_CHECKING:
    from qemu_svm.memory.memory import AddressSpace
    from qemu_svm.memory.results import Status

_WINDOW = 1 << 17  # what a processor's cache holds: four times as fast as a mebibyte
_MOST_PARTS = 512  # of a pwritev
_PART = 1 << 16  # zeros that are written at once
_SHARED = 64 << 20  # from so many bytes on, a second thread copies too

Copy = tuple[int, int, int]
"""L1-physical address, size, offset in the file; multiples of the page size."""


def copy_all(
    physical: Physical, copies: Iterable[Copy], fd: int,
    progress: Callable[[int], None] = lambda _done: None,
) -> None:  # fmt: skip
    """Write memory into a file that has no content yet where it goes.

    :param progress: called with the bytes of memory done, now and then.
    :raises StreamError: a page is damaged.
    :raises OSError: the file cannot be written.
    """
    done, files = 0, input_files(physical.ram)
    batch: list[tuple[Extent, int]] = []
    pending = 0
    for extent, place in _extents(physical, copies):
        done += extent.size
        if extent.word < FIRST_PLACE and extent.word != ENCODED:
            continue
        if pending >= _SHARED:
            _batch(physical, batch, files, fd)
            batch, pending = [], 0
            progress(done - extent.size)
        batch.append((extent, place))
        pending += extent.size
    _batch(physical, batch, files, fd)
    progress(done)


def _extents(physical: Physical, copies: Iterable[Copy]) -> Iterator[tuple[Extent, int]]:
    # With their places in the file; long ones in pieces that two threads can share.
    for start, size, place in copies:
        for one in physical.extents(start, start + size):
            at = place + one.address - start
            if one.word < FIRST_PLACE or one.size <= _SHARED // 4:
                yield one, at
                continue
            for skip in range(0, one.size, _SHARED // 4):
                pages = skip // physical.page_size
                many = min(_SHARED // 4, one.size - skip)
                word = one.word + pages * one.stride
                yield Extent(one.address + skip, many, word, one.stride), at + skip


def _batch(
    physical: Physical, batch: Sequence[tuple[Extent, int]], files: array[int] | None, fd: int
) -> None:
    # Extents with content, and their places in the file.
    rest = batch if files is None else _compiled(physical, batch, files, fd)
    _both(physical, [one for one in rest if one[0].word != ENCODED], fd)
    for extent, place in rest:
        if extent.word == ENCODED:
            for address, data in physical.content(extent):
                _write(fd, [data], place + address - extent.address)


def _compiled(
    physical: Physical, batch: Sequence[tuple[Extent, int]], files: array[int], fd: int
) -> list[tuple[Extent, int]]:
    # Copies what the compiled part can; returns the rest, which may be where an error is.
    size, strides = physical.page_size, physical.ram.runs.strides
    kinds = {strides[kind]: kind for kind in (PageKind.PAGE, PageKind.PLACED)}
    rest: list[tuple[Extent, int]] = []
    simple: list[tuple[Extent, int]] = []
    for one in batch:
        extent, place = one
        fits = extent.word != ENCODED and extent.stride in kinds and not place % size
        (simple if fits else rest).append(one)
    if not simple:
        return rest
    length = max(place + extent.size for extent, place in simple) // size
    where = array("Q", [place // size << KIND_BITS | kinds[one.stride] for one, place in simple])
    counts = array("I", [extent.size // size for extent, _ in simple])
    data = array("Q", [extent.word for extent, _ in simple])
    row = 0
    while row < len(simple):
        row = compiled.ram.copy(files, fd, 0, length, size, where, counts, data, row)
        rest += simple[row : row + 1]
        row += 1
    return rest


def _both(physical: Physical, batch: Sequence[tuple[Extent, int]], fd: int) -> None:
    # Half of it in a second thread.
    total, half, at = sum(extent.size for extent, _ in batch), 0, 0
    while at < len(batch) and half < total // 2:
        half += batch[at][0].size
        at += 1
    failed: list[BaseException] = []

    def second() -> None:
        try:
            _copies(physical, batch[at:], fd)
        except BaseException as error:  # noqa: BLE001 - raised again in the first thread
            failed.append(error)

    thread = threading.Thread(target=second) if total >= _SHARED // 2 else None
    if thread is not None:
        thread.start()
    try:
        _copies(physical, batch if thread is None else batch[:at], fd)
    finally:
        if thread is not None:
            thread.join()
    if failed:
        raise failed[0]


def _copies(physical: Physical, batch: Sequence[tuple[Extent, int]], fd: int) -> None:
    size = physical.page_size
    buffer = memoryview(bytearray(_WINDOW))
    slices: dict[int, list[memoryview]] = {}
    for extent, place in batch:
        stride = extent.stride
        begin = unpack(extent.word)
        file = physical.ram.inputs[begin.input].backing_file()
        if stride not in slices:
            slices[stride] = [
                buffer[one : one + size] for one in range(0, _WINDOW - size + 1, stride)
            ][:_MOST_PARTS]
        parts = slices[stride]
        pages = extent.size // size
        for first in range(0, pages, len(parts)):
            many = min(len(parts), pages - first)
            at, wanted = begin.plus(first * stride), (many - 1) * stride + size
            got = 0
            if file is not None:
                got = os.preadv(file.descriptor, [buffer[:wanted]], file.start + at.offset)
            if got < wanted:  # no file, or a piece that is missing: that is said there
                buffer[:wanted] = physical.ram.read_at(at, wanted)
            block: Sequence[memoryview] = parts[:many] if stride != size else [buffer[:wanted]]
            _write(fd, block, place + first * size)


def _write(fd: int, parts: Sequence[memoryview | bytes], place: int) -> None:
    wanted = sum(map(len, parts))
    done = os.pwritev(fd, parts, place)
    if done < wanted:
        rest = b"".join(parts)[done:]
        place += done
        while rest:
            done = os.pwrite(fd, rest, place)
            rest, place = rest[done:], place + done


def write_memory(
    space: AddressSpace, address: int, size: int, fd: int, *, sparse: bool
) -> dict[Status, int]:
    """Write part of an address space to a file descriptor; what is missing is zeros.

    :param sparse: of an empty file, in which zeros may be holes; else of a pipe, which is
        written from front to back.
    :returns: bytes by status.
    :raises OSError: it cannot be written.
    """
    found: dict[Status, int] = {}
    for piece in space.pieces(address, size):
        found[piece.status] = found.get(piece.status, 0) + piece.size
        if not sparse:
            _append(fd, piece.data, piece.size)
        elif piece.data:
            _write(fd, [piece.data], piece.address - address)
    if sparse:
        os.ftruncate(fd, size)
    return found


def _append(fd: int, data: bytes, size: int) -> None:
    # Zeros, where there is no data.
    left = size
    while left > 0:
        part = data or bytes(min(left, _PART))
        done = os.write(fd, part)
        data, left = data[done:], left - done
