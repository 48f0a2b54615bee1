"""Finding the end of a section that nothing describes, and of damage.

A footer repeats the section's id, so the end of an unknown payload can be
searched for.  Where there are no footers (machine types of 2.3 and older), the
header of the next section is.  Guest-controlled bytes may hold fake ones: what is
found this way is marked ``opaque``, and a description is preferred where there is one.
"""

from __future__ import annotations

import re

from qemu_svm.limits import KIB
from qemu_svm.source.base import Source
from qemu_svm.stream.constants import RecordType

_FIRST_STEP = 4 * KIB  # most sections are small, and there may be very many
_STEP = 256 * KIB
FOOTER_SIZE = 5


def footer_bytes(section_id: int) -> bytes:
    """The five bytes behind the payload of a section with that id."""
    return bytes((RecordType.FOOTER,)) + section_id.to_bytes(4, "big")


def find_footer(source: Source, start: int, section_id: int) -> int | None:
    """Return the offset of the first plausible footer at or after ``start``.

    If none is followed by something like a record, what follows is damaged, and
    the first one of all counts.
    """
    wanted = footer_bytes(section_id)
    at, first = start, None
    step = _FIRST_STEP
    while True:
        data = source.read_at(at, step + FOOTER_SIZE)
        hit = data.find(wanted)
        while hit >= 0:
            if starts_record(source.read_at(at + hit + FOOTER_SIZE, MOST_HEADER)):
                return at + hit
            first = at + hit if first is None else first
            hit = data.find(wanted, hit + 1)
        if len(data) < step + FOOTER_SIZE:
            return first
        at += step
        step = min(4 * step, _STEP)


def starts_record(behind: bytes) -> bool:
    """Whether ``behind`` a footer something like a record stands, or the input ends.

    The kind of record alone would not do: behind the footer of section 0 in a payload,
    ``7e 00 00 00 00``, there are often more zeros, and a zero is an EOF.
    """
    kind, more = behind[:1], behind[1:]
    if kind == b"\0":
        return more[:1] == b"\6" or not more.strip(b"\0")  # the description, or padding
    if kind == b"\x08":
        return more[:1] in (b"", b"\0")  # commands are few
    if more[:1] not in (b"", b"\0"):
        return not behind  # ids of sections are running numbers
    if kind in (b"\2", b"\3"):
        return True
    length = more[4:5]
    return kind in (b"", b"\1", b"\4") and length != b"\0" and _is_name(more[5:][: sum(length)])


_BOUNDARY = re.compile(
    rb"\x7e(?P<footer>.{4})"
    rb"(?=[\x02\x03](?P=footer)|[\x01\x04].{4}[\x01-\xff][!-~]|\x08\0[\0-\x0b]|\0\x06)",
    re.DOTALL,
)
_OVERLAP = 64


def next_boundary(source: Source, start: int) -> int | None:
    """Return where records plausibly go on behind damage at ``start``.

    That is behind the next footer that something like a record follows.
    """
    at = start
    while True:
        data = source.read_at(at, _STEP + _OVERLAP)
        for found in _BOUNDARY.finditer(data):
            if _plausible(data, found.end()):
                return at + found.end()
        if len(data) < _STEP + _OVERLAP:
            return None
        at += _STEP


def _plausible(data: bytes, at: int) -> bool:
    if data[at] not in (RecordType.START, RecordType.FULL):
        return True
    length = data[at + 5]
    name = data[at + 6 : at + 6 + length]
    return len(name) < length or _is_name(name)


# FULL with an id that a sender can reach, and the length of a name.
_HEADER = re.compile(rb"\x04\0[\0-\x0f]..(?P<length>[\x02-\xff])", re.DOTALL)
MOST_HEADER = 1 + 4 + 1 + 255 + 4 + 4
"""Bytes of the longest header of a section."""
_VERSIONS = 1000


def is_header(data: bytes, at: int) -> bool:
    """Whether something like the header of a device section stands at ``at``."""
    found = _HEADER.match(data, at)
    if found is None:
        return False
    end = found.end() + found["length"][0]
    name = data[found.end() : end]
    version = int.from_bytes(data[end + 4 : end + 8], "big")
    return len(data) >= end + 8 and _is_name(name) and version < _VERSIONS


def find_header(source: Source, start: int) -> int | None:
    """Return where the next device section plausibly begins, at or after ``start``.

    Behind the last one that is the EOF at the very end of the input; None if
    no EOF stands there.
    """
    at, size = start, source.size()
    step = _FIRST_STEP
    while at < size:
        data = source.read_at(at, step + MOST_HEADER)
        for found in _HEADER.finditer(data):
            if is_header(data, found.start()):
                return at + found.start()
        at += step
        step = min(4 * step, _STEP)
    return size - 1 if size > start and source.read_at(size - 1, 1) == b"\0" else None


def _is_name(name: bytes) -> bool:
    return name.isascii() and name.decode("ascii").isprintable()
