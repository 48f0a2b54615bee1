"""The binary form: read record by record, in memory that does not depend on its length.

Damage ends reading with an error that has its offset, after everything before it was returned.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from qemu_svm.errors import BuildError, Malformed, StreamError, Unsupported
from qemu_svm.kvm.numbers import Level
from qemu_svm.recording import records, structs
from qemu_svm.recording.records import Header, Record
from qemu_svm.recording.structs import HeaderFlag, Kind
from qemu_svm.source.base import Source
from qemu_svm.stream.reader import Reader


def _unpacker(layout: Any) -> struct.Struct:
    # The same declaration for Python's struct, which is about twenty times as fast.
    return struct.Struct("<" + "".join(one.subcon.fmtstr[1:] for one in layout.subcons))


_RECORD, _RUNS = _unpacker(structs.RECORD), _unpacker(structs.RUNS)
_LEVELS = tuple(None if name is None else Level(name) for name in structs.LEVELS)
_CALLS = frozenset({Kind.CALL, Kind.RUN, Kind.MISSING})
_NUMBERS = {level: number for number, level in enumerate(_LEVELS)}
_NAMES = tuple(str(one.name) for one in structs.RECORD.subcons)
_DEFAULTS = {"fd": -1}
_PADDING = bytes(8)
_MOST = _RECORD.size + 2 * structs.PAYLOAD + 7


def is_binary(head: bytes) -> bool:
    """Return whether input that starts with ``head`` is a recording in the binary form."""
    return head.startswith(structs.MAGIC)


class BinaryReader:
    """Reads a recording once, from its beginning to its end.

    :raises Truncated: the header is not all there.
    :raises Malformed: the input is not a recording.
    :raises Unsupported: the recording is of another version.
    """

    def __init__(self, source: Source) -> None:
        self._reader = Reader(source)
        self._number = 0
        try:
            self.header = self._header()
        except StreamError as error:
            error.path = source.path
            raise

    def _header(self) -> Header:
        head = self._reader.peek(structs.HEADER.sizeof())
        if not head.startswith(structs.MAGIC):
            raise Malformed(
                "not a recording",
                offset=0,
                expected=f"'{structs.MAGIC.decode()}'",
                found=head[:8].hex(" "),
            )
        version = int.from_bytes(head[8:10], "little")
        if len(head) >= 10 and version != structs.VERSION:
            raise Unsupported(
                "unsupported version of the recording",
                offset=8,
                expected=str(structs.VERSION),
                found=str(version),
            )
        known = structs.HEADER.parse(
            self._reader.take(structs.HEADER.sizeof(), "the recording's header")
        )
        if known.vendor >= len(structs.VENDORS):
            raise Malformed("unknown vendor", offset=32, field="vendor", found=str(known.vendor))
        by = next((r.name.lower() for r in structs.Recorder if r == known.recorder), "unknown")
        return Header(
            structs.VENDORS[known.vendor],
            known.pid,
            _text(known.release),
            _text(known.exe),
            "" if by == "unknown" else by,
            known.realtime,
            known.monotonic,
            bool(known.flags & HeaderFlag.REDACTED),
            bool(known.flags & HeaderFlag.ATTACHED),
        )

    def __iter__(self) -> Iterator[Record]:
        """Yield every record.

        :raises Truncated: the recording ends inside a record.
        :raises Malformed: a record is damaged.
        """
        reader = self._reader
        while reader.peek(1):
            yield from self._calls()
            if not reader.peek(1):
                return
            self._number += 1
            start = reader.offset
            head = reader.peek(4)
            size = int.from_bytes(head, "little")
            if len(head) == 4 and (not _RECORD.size <= size <= _MOST or size & 7):
                raise Malformed(
                    "invalid size of a record",
                    offset=start,
                    expected=f"a multiple of 8 from {_RECORD.size} to {_MOST & ~7}",
                    found=str(size),
                )
            yield self._record(reader.take(max(size, 4), "a record"), start)

    def _calls(self) -> Iterator[Record]:
        # The calls that are whole in the block at hand, up to a record that is unusual: most
        # records are calls, and this loop has none of Python's for each.
        block, at = self._reader.window(1)
        base, number = self._reader.offset - at, self._number
        last, head, most, none = len(block), _RECORD.size, structs.PAYLOAD, structs.NO_INDEX
        unpack, levels, call, run = _RECORD.unpack_from, _LEVELS, int(Kind.CALL), int(Kind.RUN)
        make = records.Ioctl
        while last - at >= head:
            (
                size, kind, level, index, time, duration, tid, fd, nr, arg, ret, in_len, out_len,
            ) = unpack(block, at)  # fmt: skip
            start = at + head
            middle = start + in_len
            end = middle + out_len
            if (
                (kind != call and kind != run)  # noqa: PLR1714
                or in_len > most
                or out_len > most
                or end + (-(end - at) & 7) != at + size
                or at + size > last
                or level >= len(levels)
            ):
                break
            number += 1
            at += size
            self._number, self._reader.offset = number, base + at
            yield make(
                number, time, tid, fd, levels[level], None if index == none or not level else index,
                nr, ret, block[start:middle], block[middle:end],
                0 if kind == run else arg, arg if kind == run else None, duration,
            )  # fmt: skip

    def _record(self, data: bytes, start: int) -> Record:
        (
            size, kind, level, index, time, duration, tid, fd, nr, arg, ret, in_len, out_len,
        ) = _RECORD.unpack_from(data)  # fmt: skip
        used = _RECORD.size + in_len + out_len
        if in_len > structs.PAYLOAD or out_len > structs.PAYLOAD or used + 7 & ~7 != size:
            raise Malformed(
                "the payload of a record does not fit its size",
                offset=start + 48,
                field="in_len, out_len",
                expected=f"{size - _RECORD.size} bytes",
                found=f"{in_len} and {out_len}",
            )
        middle = _RECORD.size + in_len
        given, returned = data[_RECORD.size : middle], data[middle : middle + out_len]
        place = None if index == structs.NO_INDEX or not level else index
        if kind in _CALLS:
            if level >= len(_LEVELS):
                raise Malformed("unknown level", offset=start + 5, field="level", found=str(level))
            return records.Ioctl(
                self._number, time, tid, fd, _LEVELS[level], place, nr, ret,
                given, returned, 0 if kind == Kind.RUN else arg,
                arg if kind == Kind.RUN else None, duration,
                kind == Kind.MISSING,
            )  # fmt: skip
        number = self._number
        match kind:
            case Kind.LOST:
                return records.Lost(number, time, arg)
            case Kind.FD:
                return records.Descriptor(number, time, fd, _text(returned))
            case Kind.ATTACHED:
                return records.Attached(number, time, arg)
            case Kind.MEMORY:
                return records.Memory(number, time, fd, arg, given)
            case Kind.END:
                return self._ended(start, time, arg, returned)
        raise Malformed("unknown kind of record", offset=start + 4, field="kind", found=str(kind))

    def _ended(self, start: int, time: int, arg: int, returned: bytes) -> records.Ended:
        if len(returned) % _RUNS.size:
            raise Malformed("the runs of the end record are cut", offset=start)
        reason = next((one.name.lower() for one in structs.End if one == arg), "unknown")
        runs = tuple(records.Runs(*one) for one in _RUNS.iter_unpack(returned))
        return records.Ended(self._number, time, reason, runs)


class BinaryWriter:
    """Writes a recording in the binary form.

    :raises BuildError: (everything) a value does not fit its field.
    """

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        flags = HeaderFlag(0)
        flags |= HeaderFlag.REDACTED if header.redacted else HeaderFlag(0)
        flags |= HeaderFlag.ATTACHED if header.attached else HeaderFlag(0)
        by = {one.name.lower(): one for one in structs.Recorder}
        vendor = structs.VENDORS.index(header.vendor) if header.vendor in structs.VENDORS else 2
        try:
            made = structs.HEADER.build(
                {
                    "version": structs.VERSION,
                    "flags": flags,
                    "pid": header.pid,
                    "realtime": header.realtime,
                    "monotonic": header.monotonic,
                    "vendor": vendor,
                    "release": header.release.encode()[:63].ljust(64, b"\0"),
                    "exe": header.exe.encode("utf-8", "surrogateescape")[:63].ljust(64, b"\0"),
                    "recorder": by.get(header.recorder, structs.Recorder.UNKNOWN),
                }
            )
        except Exception as error:  # construct's own tree, struct's and Python's
            raise BuildError(f"the header does not fit: {error}") from error
        file.write(made)

    def write(self, record: Record) -> None:
        """Append a record."""
        if type(record) is records.Ioctl:
            self._call(record)
            return
        given = returned = b""
        values: dict[str, int] = {}
        match record:
            case records.Lost():
                kind, values = Kind.LOST, {"arg": record.count}
            case records.Descriptor():
                kind, values = Kind.FD, {"fd": record.fd}
                returned = record.text.encode("utf-8", "surrogateescape")
            case records.Attached():
                kind, values = Kind.ATTACHED, {"arg": record.count}
            case records.Memory():
                kind, values = Kind.MEMORY, {"fd": record.fd, "arg": record.address}
                given = record.data
            case records.Ended():
                reasons = {one.name.lower(): one for one in structs.End}
                kind = Kind.END
                values = {"arg": reasons.get(record.reason, structs.End.UNKNOWN)}
                returned = b"".join(_RUNS.pack(one.fd, one.index, one.runs) for one in record.runs)
        self._put(values | {"kind": kind, "time": record.time}, given, returned)

    def _call(self, call: records.Ioctl) -> None:
        kind, arg = Kind.MISSING if call.missing else Kind.CALL, call.arg
        if call.runs is not None and call.nr == records.RUN:
            kind, arg = Kind.RUN, call.runs
        self._packed(
            (
                kind, _NUMBERS[call.level], structs.NO_INDEX if call.index is None else call.index,
                call.time, min(call.duration, structs.LONGEST), call.tid, call.fd, call.nr, arg,
                call.ret,
            ),
            call.given, call.returned,
        )  # fmt: skip

    def _put(self, values: dict[str, int], given: bytes, returned: bytes) -> None:
        between = _NAMES[1:-2]
        self._packed(
            [values.get(name, _DEFAULTS.get(name, 0)) for name in between], given, returned
        )

    def _packed(self, values: Sequence[int], given: bytes, returned: bytes) -> None:
        # The members of a record between its size and the lengths.
        ours, theirs = len(given), len(returned)
        if ours > structs.PAYLOAD or theirs > structs.PAYLOAD:
            raise BuildError(f"a payload has more than {structs.PAYLOAD} bytes")
        used = ours + theirs
        size = _RECORD.size + used + 7 & ~7
        try:
            head = _RECORD.pack(size, *values, ours, theirs)
        except struct.error as error:
            raise BuildError(f"a record's value does not fit its field: {error}") from error
        self._file.write(b"".join((head, given, returned, _PADDING[: -used % 8])))


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "backslashreplace")
