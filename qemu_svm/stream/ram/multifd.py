"""multifd: pages on separate channels, in addition to the main stream.

A channel starts with a packet of 64 bytes; then come packets of a fixed length that
list pages of one block, each followed by the content of these pages: unencoded, or as
a piece of one zlib or zstd stream for the whole channel.  Numbers are big-endian::

      0  magic, version, flags, pages allocated, normal pages,
         bytes that follow (32 bits each)
     24  packet number (64 bits); zero pages (32 bits); reserved
     64  block name, 256 bytes, padded with zeros
    320  offsets in the block (64 bits each): normal pages, then zero pages

A packet with SYNC ends an *epoch*; the main stream has a mark for each.  All pages
of an epoch precede those of the next; within an epoch, no page is sent twice.
Senders before 9.0 may leave a stale length if no pages follow.

Source: QEMU ``migration/multifd.h``, ``multifd.c``, ``multifd-zlib.c``,
``multifd-zstd.c``, 7.2 and 10.2.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from sys import intern

from qemu_svm.errors import Malformed, SourceError, StreamError, Unsupported
from qemu_svm.limits import KIB, Limits
from qemu_svm.source.base import BackingFile, Source
from qemu_svm.source.spool import spool_directory
from qemu_svm.stream.reader import Reader, name_text

MAGIC = 0x11223344
_VERSION = 1
_PACKET_BYTES = 512 * KIB  # pages of a full packet
_SYNC = 1
_DEVICE_STATE = 64
_METHODS = {0: "none", 2: "zlib", 4: "zstd", 8: "qpl", 16: "uadk", 32: "qatzip"}
_INITIAL = struct.Struct(">II16sB39s")
_HEADER = struct.Struct(">6IQI28s256s")
_DEVICE = struct.Struct(">3I256sII")
_FEED = KIB  # compressed bytes at a time: they expand to 1 MiB at most (zlib)


@dataclass(frozen=True, slots=True)
class Pages:
    """Consecutive pages of a block in one packet.

    :param page: number of the first page.
    :param data: offset of the first page's content; None for zero pages.
    """

    page: int
    count: int
    data: int | None


_ZERO = (1 << 64) - 1  # instead of an offset, for zero pages


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet: pages of one block.

    :param runs: three numbers for each run of pages: see :attr:`pages`.
    """

    number: int
    epoch: int
    block: str
    runs: array[int]

    @property
    def pages(self) -> Iterator[Pages]:
        """Runs of consecutive pages."""
        numbers = iter(self.runs)
        for page, count, data in zip(numbers, numbers, numbers, strict=True):
            yield Pages(page, count, None if data == _ZERO else data)


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel as read.

    :param number: channel id; from 0.
    :param source: the content of its pages: the channel itself, or a temporary file
        if they were compressed.
    :param unpacked: it is a temporary file, which is closed with this object.
    :param packets: in order; SYNC packets without pages are left out.
    :param epochs: number of SYNC packets.
    :param jobs: number of packets that the sender numbered; see :func:`_jobs`.
    :param highest: highest packet number; -1 if there are no packets.
    :param problem: the error that ended the channel early.
    """

    number: int
    uuid: bytes
    methods: tuple[str, ...]
    source: Source
    packets: tuple[Packet, ...]
    epochs: int
    problem: StreamError | None
    jobs: int
    highest: int
    unpacked: bool

    def close(self) -> None:
        """Close the temporary file; the channel itself stays open."""
        if self.unpacked:
            self.source.close()


def channel_number(head: bytes) -> int | None:
    """Return the number of the channel that starts with ``head``; None if it is not one."""
    if len(head) < _INITIAL.size:
        return None
    magic, _version, _uuid, number, _ = _INITIAL.unpack_from(head)
    return int(number) if magic == MAGIC else None


def channel_head(source: Source, page_size: int) -> tuple[int, str]:
    """Return number and compression of a channel without reading its pages.

    :raises StreamError: ``source`` is not a channel.
    """
    reader = Reader(source)
    number = channel_number(reader.peek(_INITIAL.size))
    if number is None:
        raise Malformed(f"'{source.path}' is not a multifd channel", offset=0)
    reader.skip(_INITIAL.size, "a channel")
    offsets = 8 * max(1, _PACKET_BYTES // page_size)
    while not reader.at_end():
        _, _, flags, _, normal, *_ = _HEADER.unpack(reader.take(_HEADER.size, "a multifd packet"))
        if normal:
            return number, _METHODS.get(flags & 0x3E, f"{flags & 0x3E:#x}")
        reader.skip(offsets, "a multifd packet's offsets")
    return number, "none"


def is_channel(source: Source) -> bool:
    """Whether ``source`` starts like a channel."""
    return source.read_at(0, 4) == MAGIC.to_bytes(4, "big")


def read_channel(source: Source, page_size: int, limits: Limits) -> Channel:
    """Read a channel; compressed pages go to a temporary file.

    :raises StreamError: ``source`` does not start like a channel.
    """
    reader = Reader(source)
    magic, version, uuid, number, _ = _INITIAL.unpack(reader.take(_INITIAL.size, "a channel"))
    if magic != MAGIC:
        raise Malformed(
            f"'{source.path}' is not a multifd channel",
            offset=0,
            expected=f"{MAGIC:#x}",
            found=f"{magic:#x}",
        )
    if version != _VERSION:
        raise Unsupported(
            "unknown version of a multifd channel",
            offset=4,
            expected=f"{_VERSION}",
            found=f"{version}",
        )
    state = _State(reader, source.path, page_size, limits)
    packets: list[Packet] = []
    problem: StreamError | None = None
    try:
        while not reader.at_end():
            packet = state.packet()
            if packet is not None:
                packets.append(packet)
    except StreamError as error:
        error.section = f"multifd channel {number}"
        problem = error
    return Channel(
        number,
        uuid,
        tuple(state.methods),
        state.spool or source,
        tuple(packets),
        state.epoch,
        problem,
        state.jobs,
        state.highest,
        state.spool is not None,
    )


class _State:
    # State of a channel: the epoch, the decompressor, decompressed pages.
    def __init__(self, reader: Reader, path: str, page_size: int, limits: Limits) -> None:
        self.reader = reader
        self.path = path
        self.page_size = page_size
        self.limits = limits
        self.epoch = 0
        self.jobs = 0
        self.highest = -1
        self.methods: list[str] = []
        self.spool: _Unpacked | None = None
        self._inflate: Callable[[bytes], Iterable[bytes]] | None = None

    def packet(self) -> Packet | None:
        reader, start = self.reader, self.reader.offset
        if int.from_bytes(reader.peek(12)[8:], "big") & _DEVICE_STATE:
            *_, size = _DEVICE.unpack(reader.take(_DEVICE.size, "a device-state packet"))
            self.reader.skip(size, "multifd pages")
            return None
        head = reader.take(_HEADER.size, "a multifd packet")
        magic, version, flags, _, normal, size, number, zero, _, name = _HEADER.unpack(head)
        room = max(1, _PACKET_BYTES // self.page_size)
        if magic != MAGIC or version != _VERSION or normal + zero > room:
            raise Malformed(
                "not a multifd packet",
                offset=start,
                expected=f"{MAGIC:#x}, version {_VERSION}, at most {room} pages",
                found=f"{magic:#x}, version {version}, {normal + zero} pages",
            )
        offsets = struct.unpack(f">{room}Q", reader.take(8 * room, "a multifd packet's offsets"))
        for offset in offsets[: normal + zero]:
            if offset % self.page_size:
                raise Malformed(
                    "offset in a multifd packet is not a multiple of the page size",
                    offset=start + _HEADER.size,
                    found=f"{offset:#x}",
                )
        data = self._payload(flags & 0x3E, normal, size, start) if normal else 0
        runs = array("Q")
        for stored, part in ((True, offsets[:normal]), (False, offsets[normal : normal + zero])):
            for first, page, count in self._runs(part):
                runs.extend((page, count, data + first * self.page_size if stored else _ZERO))
        epoch = self.epoch
        self.epoch += flags & _SYNC
        self.jobs += _jobs(sync=bool(flags & _SYNC), pages=bool(normal + zero))
        self.highest = max(self.highest, number)
        if not runs:
            return None
        return Packet(number, epoch, intern(name_text(name.rstrip(b"\0"))), runs)

    def _runs(self, offsets: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
        # ``(index of the first, page, count)`` of consecutive pages.
        first = 0
        for index in range(1, len(offsets) + 1):
            if index == len(offsets) or offsets[index] != offsets[index - 1] + self.page_size:
                yield first, offsets[first] // self.page_size, index - first
                first = index

    def _payload(self, method: int, normal: int, size: int, start: int) -> int:
        # Skip the content of the pages; returns its offset in ``Channel.source``.
        name = _METHODS.get(method, f"{method:#x}")
        if name not in self.methods:
            self.methods.append(name)
        wanted = normal * self.page_size
        if name == "none":
            data = self.reader.offset
            if size != wanted or self.spool is not None:
                raise Malformed(
                    "wrong length in a multifd packet",
                    offset=start + 20,
                    expected=f"{wanted}",
                    found=f"{size}",
                )
            self.reader.skip(size, "multifd pages")
            return data
        if name not in ("zlib", "zstd") or (self._inflate is None and len(self.methods) > 1):
            raise Unsupported(
                "compression of multifd pages is not supported",
                offset=start + 8,
                expected="none, zlib or zstd; one per channel",
                found=" and ".join(self.methods),
            )
        if self._inflate is None:
            self._inflate = _inflater(name, self.limits.window_bytes)
            self.spool = _Unpacked(self.path, self.limits)
        assert self.spool is not None
        return self._unpack(size, wanted, start)

    def _unpack(self, size: int, wanted: int, start: int) -> int:
        assert self.spool is not None
        begin = self.spool.size()
        left, out = size, 0
        while left:
            piece = self.reader.take(min(left, _FEED), "compressed multifd pages")
            left -= len(piece)
            for got in self._inflated(piece, start):
                out += len(got)
                if out > wanted:
                    break
                self.spool.append(got)
            if out > wanted:
                break
        if out != wanted:
            raise Malformed(
                "compressed multifd pages have the wrong length",
                offset=start,
                expected=f"{wanted} bytes",
                found=f"{out}",
            )
        return begin

    def _inflated(self, data: bytes, start: int) -> Iterator[bytes]:
        assert self._inflate is not None
        try:
            yield from self._inflate(data)
        except Exception as error:
            raise Malformed(
                f"compressed multifd pages are damaged: {error}", offset=start
            ) from error


def _jobs(*, sync: bool, pages: bool) -> int:
    # Before 9.0 a pending packet may carry the SYNC.  The packet that was numbered for
    # it is then empty and sent later, or not at all if the channel closes before.
    if sync and pages:
        return 2
    return int(sync or pages)


def _inflater(method: str, window: int) -> Callable[[bytes], Iterable[bytes]]:
    if method == "zlib":
        import zlib

        inflate = zlib.decompressobj().decompress
        return lambda data: (inflate(data),)
    from qemu_svm.source.zstd import Pieces, decompressor

    pieces, frame = Pieces(), decompressor(window).decompressobj()
    return lambda data: map(frame.decompress, pieces.cut(data))


class _Unpacked(Source):
    # Decompressed pages in a temporary file.
    def __init__(self, path: str, limits: Limits) -> None:
        import tempfile

        self.path = path
        self._limit = limits.spool_bytes
        self._size = 0
        self._file = tempfile.TemporaryFile(dir=spool_directory())  # noqa: SIM115 - closed by close()

    def append(self, data: bytes) -> None:
        if self._size + len(data) > self._limit:
            raise SourceError(f"more than {self._limit} bytes decompressed from a multifd channel")
        try:
            self._file.seek(self._size)
            self._file.write(data)
        except OSError as error:
            raise SourceError(
                f"no space for the pages of a multifd channel: {error.strerror}",
                hint="set TMPDIR to a directory with more free space",
            ) from error
        self._size += len(data)

    def read_at(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def size(self) -> int:
        return self._size

    def backing_file(self) -> BackingFile | None:
        self._file.flush()
        return BackingFile(self._file.fileno(), 0)

    def close(self) -> None:
        self._file.close()
