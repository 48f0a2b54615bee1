"""Find the end of a section of unknown layout, and the end of damage.

A footer repeats the section's id, so the end of an unknown payload can be searched
for.  In streams without footers (machine types of 2.3 and older), the header of the
next section is searched for instead.  Bytes that the guest controls may imitate both:
such sections are marked ``opaque``, and a description is preferred.
"""

from __future__ import annotations

import re

from qemu_svm.limits import KIB
from qemu_svm.source.base import Source
from qemu_svm.stream.constants import RecordType

_FIRST_STEP = 4 * KIB  # most sections are small, and there may be many
_STEP = 256 * KIB
FOOTER_SIZE = 5


def footer_bytes(section_id: int) -> bytes:
    """Return the five bytes after the payload of a section with that id."""
    return bytes((RecordType.FOOTER,)) + section_id.to_bytes(4, "big")


def find_footer(source: Source, start: int, section_id: int) -> int | None:
    """Return the offset of the first plausible footer at or after ``start``.

    A plausible footer is followed by something like a record.  If there is none, the
    record after the section is damaged, and the first footer is returned.
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


def starts_record(after: bytes) -> bool:
    """Whether the bytes after a footer look like a record, or the input ends there.

    The type byte alone is not enough: a payload may contain the footer of section 0,
    ``7e 00 00 00 00``, which is often followed by more zeros, and a zero is an EOF.
    """
    kind, more = after[:1], after[1:]
    if kind == b"\0":
        return more[:1] == b"\6" or not more.strip(b"\0")  # the description, or padding
    if kind == b"\x08":
        return more[:1] in (b"", b"\0")  # commands are few
    if more[:1] not in (b"", b"\0"):
        return not after  # ids of sections are consecutive numbers
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
    """Return the offset at which records plausibly continue after damage at ``start``.

    That is after the next footer that is followed by something like a record.
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


# FULL, an id that senders reach, and the length of a name.
_HEADER = re.compile(rb"\x04\0[\0-\x0f]..(?P<length>[\x02-\xff])", re.DOTALL)
MOST_HEADER = 1 + 4 + 1 + 255 + 4 + 4
"""Bytes of the longest header of a section."""
_VERSIONS = 1000


def is_header(data: bytes, at: int) -> bool:
    """Whether the bytes at ``at`` look like the header of a device section."""
    found = _HEADER.match(data, at)
    if found is None:
        return False
    end = found.end() + found["length"][0]
    name = data[found.end() : end]
    version = int.from_bytes(data[end + 4 : end + 8], "big")
    return len(data) >= end + 8 and _is_name(name) and version < _VERSIONS


def find_header(source: Source, start: int) -> int | None:
    """Return the offset of the next plausible device section, at or after ``start``.

    After the last section that is the EOF at the end of the input; None if there is
    no EOF.
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
