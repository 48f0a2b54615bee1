"""The interchange form: JSON lines that any VMM's developer can write.

The first line has the key ``svmstream-recording``, each further line is a record.
``docs/recording.md`` documents the keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from qemu_svm.errors import (
    BuildError,
    LimitExceeded,
    Malformed,
    StreamError,
    Truncated,
    Unsupported,
)
from qemu_svm.kvm import numbers
from qemu_svm.kvm.numbers import Level
from qemu_svm.recording import records, structs
from qemu_svm.recording.records import Header, Record
from qemu_svm.source.base import Source

KEY = "svmstream-recording"
_STEP = 1 << 18
_LINE = 4 * structs.PAYLOAD + (1 << 12)
"""Most bytes of a line: both payloads in hexadecimal, and the rest."""
_VALUE = 64
_U64, _U32, _S32 = (0, (1 << 64) - 1), (0, (1 << 32) - 1), (-(1 << 31), (1 << 31) - 1)
_S64 = (-(1 << 63), (1 << 63) - 1)
_U16 = (0, (1 << 16) - 1)
_MOST_U64, _MOST_U32, _MOST_U16 = _U64[1], _U32[1], _U16[1]
_MOST_S64, _MOST_S32 = _S64[1], _S32[1]
_BY_NAME: dict[str | None, Level | None] = {None: None, **{one.value: one for one in Level}}
_PLAIN = frozenset(
    ("t", "tid", "fd", "level", "index", "nr", "arg", "ret", "in", "out", "runs", "duration")
)
_encode = json.JSONEncoder().encode
_decode, _fromhex = json.JSONDecoder().raw_decode, bytes.fromhex
_VENDORS = structs.VENDORS
_REASONS = tuple(one.name.lower() for one in structs.End)


def is_jsonl(head: bytes) -> bool:
    """Return whether input that starts with ``head`` is a recording as JSON lines."""
    line = head.lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")[0]
    return line.startswith(b"{") and b'"' + KEY.encode() + b'"' in line


class JsonReader:
    """Reads a recording once, from its beginning to its end.

    :raises Truncated: the first line is not all there.
    :raises Malformed: the first line is not that of a recording.
    :raises Unsupported: the recording is of another version.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lines = _lines(source)
        try:
            self.header = self._header()
        except StreamError as error:
            error.path = source.path
            raise

    def _header(self) -> Header:
        for offset, number, text in self._lines:
            if text.strip(b"\xef\xbb\xbf \t\r\n"):
                return _header(_parsed(text.removeprefix(b"\xef\xbb\xbf"), offset, number))
        raise Truncated("the input ends before the recording's first line", offset=0)

    def __iter__(self) -> Iterator[Record]:
        """Yield every record.

        :raises Truncated: the last line is cut.
        :raises Malformed: a line is not a record.
        """
        for offset, number, text in self._lines:
            record = _plain_call(text, number)
            if record is not None:
                yield record
            elif text and not text.isspace():
                other = _record(_parsed(text, offset, number))
                if other is not None:
                    yield other


def _lines(source: Source) -> Iterator[tuple[int, int, bytes]]:
    # Offset, number and bytes of each line, without its end; a cut last line is left to the JSON.
    at = offset = number = 0
    head = b""
    while chunk := source.read_at(at, _STEP):
        at += len(chunk)
        *whole, last = chunk.split(b"\n")
        for piece in whole:
            number += 1
            line = head + piece
            head = b""
            if len(line) > _LINE:
                raise _too_long(offset, number)
            yield offset, number, line
            offset += len(line) + 1
        head += last
        if len(head) > _LINE:
            raise _too_long(offset, number + 1)
    if head:
        yield offset, number + 1, head


def _too_long(offset: int, number: int) -> LimitExceeded:
    return LimitExceeded(
        f"line {number} is too long", offset=offset, expected=f"at most {_LINE} bytes"
    )


def _parsed(text: bytes, offset: int, number: int) -> _Line:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not text.rstrip(b"\r\t ").endswith(b"}"):
            raise Truncated(f"line {number} is cut", offset=offset + len(text)) from None
        raise Malformed(f"line {number}: no JSON: {str(error)[:_VALUE]}", offset=offset) from None
    if not isinstance(found, dict):
        raise Malformed(
            f"line {number}: the line is no object",
            offset=offset,
            expected="{...}",
            found=_shown(found),
        )
    return _Line(number, offset, found)


@dataclass(frozen=True)
class _Line:
    # The values of a line, each of which is checked when it is taken.
    number: int
    offset: int
    values: dict[str, Any]

    def wrong(self, what: str, **details: str) -> Malformed:
        return Malformed(f"line {self.number}: {what}", offset=self.offset, **details)

    def integer(self, key: str, within: tuple[int, int], default: int | None = 0) -> int:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, str):
            try:
                value = int(value, 0)
            except ValueError:
                value = self.values[key]
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.wrong(
                "no number", field=key, expected='a number or "0x..."', found=_shown(value)
            )
        if not within[0] <= value <= within[1]:
            raise self.wrong(
                "the number is out of range",
                field=key,
                expected=f"{within[0]} to {within[1]}",
                found=_shown(value),
            )
        return value

    def data(self, key: str) -> bytes:
        value = self.values.get(key)
        if value is None:
            return b""
        try:
            found = bytes.fromhex(value)
        except (TypeError, ValueError):
            raise self.wrong(
                "no bytes", field=key, expected="hexadecimal digits", found=_shown(value)
            ) from None
        if len(found) > structs.PAYLOAD:
            raise self.wrong(
                "too many bytes",
                field=key,
                expected=f"at most {structs.PAYLOAD}",
                found=str(len(found)),
            )
        return found

    def word(self, key: str, default: str = "") -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.wrong("no text", field=key, found=_shown(value))
        return value

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong("neither true nor false", field=key, found=_shown(value))
        return value


def _shown(value: object) -> str:
    # An integer of many digits has no text.
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "a number of many digits"
    return repr(value)[:_VALUE]


def _header(line: _Line) -> Header:
    if KEY not in line.values:
        raise line.wrong("not a recording", expected=f'"{KEY}": 1')
    version = line.values[KEY]
    if version != structs.VERSION or isinstance(version, bool):
        raise Unsupported(
            "unsupported version of the recording",
            offset=0,
            field=KEY,
            expected=str(structs.VERSION),
            found=_shown(version),
        )
    vendor = line.word("vendor", "amd").lower()
    if vendor not in _VENDORS:
        raise line.wrong(
            "unknown vendor", field="vendor", expected=", ".join(_VENDORS), found=_shown(vendor)
        )
    return Header(
        vendor,
        line.integer("pid", _U32),
        line.word("release"),
        line.word("exe"),
        line.word("recorder") or line.word("source"),
        line.integer("realtime", _U64),
        line.integer("monotonic", _U64),
        line.flag("redacted"),
        line.flag("attached"),
    )


def _record(line: _Line) -> Record | None:
    kind = line.word("kind", "call")
    time = line.integer("t", _U64)
    if kind == "call":
        return _call(line, time)
    if kind == "lost":
        return records.Lost(line.number, time, line.integer("count", _U64, None))
    if kind == "fd":
        fd = line.integer("fd", _S32, None)
        return records.Descriptor(line.number, time, fd, line.word("text"))
    if kind == "memory":
        address = line.integer("address", _U64, None)
        fd = line.integer("fd", _S32, -1)
        return records.Memory(line.number, time, fd, address, line.data("data"))
    if kind == "attached":
        return records.Attached(line.number, time, line.integer("count", _U64))
    return _ended(line, time) if kind == "end" else None  # another is of a later version


def _plain_call(text: bytes, number: int) -> records.Ioctl | None:
    # A call whose values are all as they should be; None for anything else, which is then read
    # value by value.
    try:
        whole = text.decode()
        values, end = _decode(whole)
        get = values.get
        nr, ret, level = _hexadecimal(values["nr"]), values["ret"], get("level")
        given, returned = _fromhex(get("in", "")), _fromhex(get("out", ""))
        time, tid, fd, index = values["t"], get("tid", 0), values["fd"], get("index")
        if not (
            type(time) is type(ret) is type(tid) is type(fd) is int
            and 0 <= time <= _MOST_U64
            and 0 <= tid <= _MOST_U32
            and 0 <= nr <= _MOST_U32
            and -_MOST_S32 <= fd <= _MOST_S32
            and -_MOST_S64 <= ret <= _MOST_S64
            and len(given) <= structs.PAYLOAD
            and len(returned) <= structs.PAYLOAD
            and (index is None or (type(index) is int and 0 <= index <= _MOST_U16))
            and values.keys() <= _PLAIN
            and (end == len(whole) or whole[end:].isspace())
        ):
            return None
        known = _BY_NAME[level]
        arg = _hexadecimal(values["arg"]) if "arg" in values else 0
        runs, duration = get("runs"), get("duration", 0)
        if not (
            0 <= arg <= _MOST_U64
            and type(duration) is int
            and 0 <= duration <= _MOST_U64
            and (runs is None or (type(runs) is int and 0 <= runs <= _MOST_U64))
        ):
            return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return records.Ioctl(
        number, time, tid, fd, known, None if known is None else index, nr, ret, given, returned,
        arg, runs, duration,
    )  # fmt: skip


def _hexadecimal(word: str) -> int:
    if not word.startswith("0x"):
        raise ValueError
    return int(word, 16)


def _call(line: _Line, time: int) -> records.Ioctl:
    level = line.values.get("level")
    known = next((one for one in Level if one.value == level), None)
    if level is not None and known is None:
        raise line.wrong(
            "unknown level",
            field="level",
            expected="system, vm, vcpu, device or null",
            found=_shown(level),
        )
    runs = None if line.values.get("runs") is None else line.integer("runs", _U64)
    return records.Ioctl(
        line.number,
        time,
        line.integer("tid", _U32),
        line.integer("fd", _S32, -1),
        known,
        _index(line) if known else None,
        _nr(line),
        line.integer("ret", _S64, None),
        line.data("in"),
        line.data("out"),
        line.integer("arg", _U64),
        runs,
        line.integer("duration", _U64),
        line.flag("missing"),
    )


def _index(line: _Line) -> int | None:
    return None if line.values.get("index") in (None, -1) else line.integer("index", _U16)


def _nr(line: _Line) -> int:
    value = line.values.get("nr")
    if isinstance(value, str) and not value[:1].isdigit():
        known = numbers.by_name(value)
        if known is None:
            raise line.wrong("unknown ioctl", field="nr", found=_shown(value))
        return known.number
    return line.integer("nr", _U64, None) & _U32[1]  # libc may sign-extend it


def _ended(line: _Line, time: int) -> records.Ended:
    reason = line.word("reason", "unknown")
    rows = line.values.get("runs") or []
    if not isinstance(rows, list) or len(rows) > _U16[1]:
        raise line.wrong("no list", field="runs", found=_shown(rows))
    runs = []
    for row in rows:
        if not isinstance(row, dict):
            raise line.wrong("no object", field="runs", found=_shown(row))
        one = _Line(line.number, line.offset, row)
        runs.append(
            records.Runs(
                one.integer("fd", _S32, -1), one.integer("index", _U32), one.integer("runs", _U64)
            )
        )
    return records.Ended(
        line.number, time, reason if reason in _REASONS else "unknown", tuple(runs)
    )


class JsonWriter:
    """Writes a recording as JSON lines.

    :raises BuildError: (:meth:`write`) a payload is too long.
    """

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        values = {
            "pid": header.pid,
            "release": header.release,
            "exe": header.exe,
            "recorder": header.recorder,
            "realtime": header.realtime,
            "monotonic": header.monotonic,
            "redacted": header.redacted,
            "attached": header.attached,
        }
        self._line(
            {KEY: structs.VERSION, "vendor": header.vendor}
            | {key: value for key, value in values.items() if value}
        )

    def write(self, record: Record) -> None:
        """Append a record."""
        match record:
            case records.Ioctl():
                self._line(_values(record))
            case records.Lost():
                self._line({"kind": "lost", "t": record.time, "count": record.count})
            case records.Descriptor():
                self._line({"kind": "fd", "t": record.time, "fd": record.fd, "text": record.text})
            case records.Attached():
                self._line({"kind": "attached", "t": record.time, "count": record.count})
            case records.Memory():
                self._line(
                    {
                        "kind": "memory",
                        "t": record.time,
                        "fd": record.fd,
                        "address": hex(record.address),
                        "data": record.data.hex(),
                    }
                )
            case records.Ended():
                runs = [{"fd": one.fd, "index": one.index, "runs": one.runs} for one in record.runs]
                self._line({"kind": "end", "t": record.time, "reason": record.reason, "runs": runs})

    def _line(self, values: dict[str, object]) -> None:
        self._file.write(_encode(values).encode() + b"\n")


def _values(call: records.Ioctl) -> dict[str, object]:
    if max(len(call.given), len(call.returned)) > structs.PAYLOAD:
        raise BuildError(f"a payload has more than {structs.PAYLOAD} bytes")
    values: dict[str, object] = {
        "t": call.time,
        "tid": call.tid,
        "fd": call.fd,
        "level": None if call.level is None else call.level.value,
        "index": call.index,
        "nr": hex(call.nr),
        "ret": call.ret,
        "in": call.given.hex(),
        "out": call.returned.hex(),
    }
    if call.arg:
        values["arg"] = hex(call.arg)
    if call.runs is not None:
        values["runs"] = call.runs
    if call.duration:
        values["duration"] = call.duration
    if call.missing:
        values["missing"] = True
    return values
