"""Unwrap an input down to its stream: compressions, and at most one container.

``FILE#SNAPSHOT`` selects an internal snapshot, ``FILE#@OFFSET`` a stream that starts
at an offset.  If a file of the whole name exists, that file is opened.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from contextlib import ExitStack

from qemu_svm.errors import SourceError
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.source import compressed
from qemu_svm.source.base import Source
from qemu_svm.source.feed import Feed, feed_of
from qemu_svm.source.offset import STREAM_MAGIC, OffsetSource, find_stream
from qemu_svm.source.plain import FileSource
from qemu_svm.source.spool import SpoolSource
from qemu_svm.source.xen import XEN, find_emulator

LAYERS = 4
"""Most nested compressions."""

_HEAD = 16
_QCOW2 = b"QFI\xfb"
_CONTAINERS = ("libvirt", "qcow2", "xen")
_RECORDING = b"SVMIOCTL"
_LIBVIRT = (b"LibvirtQemudSave", b"LibvirtQemudPart")


def open_source(path: str, limits: Limits = DEFAULT) -> Source:
    """Open a stream for reading.

    :param path: a file name, or ``-`` for standard input; the name or id of a
        snapshot, or ``@`` and an offset, may follow after ``#``.  ``libvirt:NAME`` is the
        managed save of a domain.
    :raises SourceError: no such file, a directory, no permission, or a container
        that is damaged or does not contain the stream.
    """
    name, wanted = _split(path)
    if name.startswith("libvirt:") and not os.path.lexists(name):
        from qemu_svm.source.libvirt import managed_save

        name = managed_save(name.removeprefix("libvirt:"))
    fd = _descriptor(name)
    with ExitStack() as owned:
        # Everything opened is closed again if anything fails from here on.
        try:
            feed = _feed(fd, path, limits, owned)
            source = _Peeler(feed, wanted, limits, owned).source()
        except OSError as error:
            raise SourceError(f"cannot read '{path}': {error.strerror}") from error
        owned.pop_all()
        return source


def _split(path: str) -> tuple[str, str | None]:
    # The shortest existing file name before a #.
    if "#" not in path or os.path.lexists(path):
        return path, None
    at = path.find("#")
    while at >= 0:
        if path[:at] == "-" or os.path.lexists(path[:at]):
            return path[:at], path[at + 1 :]
        at = path.find("#", at + 1)
    return path, None


def _descriptor(path: str) -> int:
    try:
        if path == "-":
            if sys.stdin is None:
                raise SourceError("standard input is closed")
            return os.dup(sys.stdin.fileno())
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SourceError(f"cannot open '{path}': {reason}") from error


def _feed(fd: int, path: str, limits: Limits, owned: ExitStack) -> Feed:
    file = FileSource(fd, path)
    owned.callback(file.close)
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        raise SourceError(f"'{path}' is a directory, not a stream")
    whole = stat.S_ISREG(mode) or stat.S_ISBLK(mode)
    if whole and os.lseek(fd, 0, os.SEEK_CUR) == 0:
        return feed_of(file, _most(limits))

    def read(size: int) -> bytes:
        try:
            return os.read(fd, size)
        except OSError as error:
            raise SourceError(f"cannot read '{path}': {error.strerror}") from error

    return Feed(read, path, limit=_most(limits))


class _Peeler:
    # Unwraps one layer after the other from a feed.

    def __init__(self, feed: Feed, wanted: str | None, limits: Limits, owned: ExitStack) -> None:
        self._feed = feed
        self._wanted = wanted
        self._limits = limits
        self._most = _most(limits)
        self._window = limits.window_bytes
        self._owned = owned
        self._layers: list[str] = []
        self._container = "plain"
        self._offset = 0

    def source(self) -> Source:
        self._decompress()
        head = self._feed.peek(_HEAD)
        wanted = self._wanted
        if wanted is not None and wanted.startswith("@") and not head.startswith(_QCOW2):
            return self._at(_number(wanted, self._feed.path))
        if head.startswith(_QCOW2):
            return self._qcow2()
        if wanted is not None:
            raise SourceError(
                f"'#{wanted}' names a snapshot, but '{self._feed.path}' is not a qcow2 image",
                hint="FILE#@OFFSET opens a stream at an offset",
            )
        if head.startswith(_LIBVIRT):
            return self._libvirt()
        if head.startswith(XEN):
            return self._xen()
        if head.startswith((STREAM_MAGIC[:4], _RECORDING)) or len(head) < _HEAD:
            # Guest memory in a recording may have the magic of a stream.
            return self._finish(self._plain())
        return self._search()

    def _decompress(self) -> None:
        # Unwraps compressions until there are none.
        while (name := compressed.sniff_feed(self._feed)) != "none":
            if sum(layer not in _CONTAINERS for layer in self._layers) >= LAYERS:
                raise SourceError(
                    f"'{self._feed.path}' is compressed more than {LAYERS} times: "
                    f"{', '.join(self._layers)}, {name}"
                )
            self._layers.append(name)
            inner, path = self._feed, self._feed.path
            read: Callable[[int], bytes]
            if name == "lzop":
                from qemu_svm.source.lzop import Lzop

                program = Lzop(inner)
                self._owned.callback(program.close)
                read = program.read
            else:
                read = compressed.reader(inner, name, path, self._window)
                if name in compressed.WINDOWED:
                    self._window //= 2  # nested compressions share the limit
            self._feed = Feed(read, path, limit=self._most)

    def _plain(self) -> Source:
        # The rest of the feed, with random access.  Owns everything opened so far.
        feed = self._feed
        close = self._owned.pop_all().close
        if feed.source is not None:
            start = feed.position
            self._owned.callback(close)
            return OffsetSource(feed.source, start) if start else feed.source
        source = SpoolSource(
            feed.read,
            feed.path,
            limit=self._limits.spool_bytes,
            close=close,
        )
        self._owned.callback(source.close)
        return source

    def _finish(self, source: Source) -> Source:
        packed = [layer for layer in self._layers if layer not in _CONTAINERS]
        source.compression = packed[-1] if packed else "none"
        source.container = self._container
        source.layers = tuple(self._layers)
        source.stream_offset = self._offset
        return source

    def _at(self, offset: int) -> Source:
        self._offset = offset
        if offset:
            self._feed = feed_of(self._plain(), self._most, offset)
        self._decompress()
        return self._finish(self._plain())

    def _search(self) -> Source:
        source = self._plain()
        found = find_stream(source)
        if found is None:
            return self._finish(source)
        self._offset = found
        return self._finish(OffsetSource(source, found))

    def _xen(self) -> Source:
        source = self._plain()
        found = find_emulator(source)
        if found is None:
            return self._finish(source)
        self._container = "xen"
        self._layers.append("xen")
        self._offset = found[0]
        return self._finish(OffsetSource(source, *found))

    def _libvirt(self) -> Source:
        from qemu_svm.source.libvirt import read_header

        details = read_header(self._feed, self._limits)
        self._container = "libvirt"
        self._layers.append("libvirt")
        self._offset = self._feed.position
        head = self._feed.peek(_HEAD)
        kind = compressed.sniff(head)
        if kind == "none" and head and not STREAM_MAGIC.startswith(head[:4]):
            raise SourceError(
                f"'{self._feed.path}': the libvirt header puts a stream ({details.format}) at "
                f"{self._offset:#x}, but found {head[:8].hex(' ')}",
                hint="FILE#@OFFSET opens a stream at its real offset",
            )
        self._decompress()
        source = self._plain()
        source.details = details
        return self._finish(source)

    def _qcow2(self) -> Source:
        from qemu_svm.source.qcow2 import open_snapshot

        image = self._plain()
        self._layers.append("qcow2")
        self._container = "qcow2"
        return self._finish(open_snapshot(image, self._wanted))


def _most(limits: Limits) -> int:
    # spool_bytes limits the bytes that are kept; this limits the bytes that pass through.
    return 2 * limits.spool_bytes


def _number(wanted: str, path: str) -> int:
    try:
        offset = int(wanted[1:], 0)
    except ValueError:
        offset = -1
    if not 0 <= offset < 1 << 62:
        raise SourceError(f"'{wanted}' after '{path}' is not an offset such as @0x10000")
    return offset
