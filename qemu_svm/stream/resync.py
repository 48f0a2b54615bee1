"""Finding the end of a section that nothing describes.

A footer repeats the section's id, so the end of an unknown payload can be
searched for.  Guest-controlled bytes may hold a fake footer: what is found
this way is marked ``opaque``, and a description is preferred where there is one.
"""

from __future__ import annotations

from qemu_svm.limits import KIB
from qemu_svm.source.base import Source
from qemu_svm.stream.constants import RecordType

_STEP = 256 * KIB
_BEHIND_FOOTER = frozenset(
    {
        RecordType.EOF,
        RecordType.START,
        RecordType.PART,
        RecordType.END,
        RecordType.FULL,
        RecordType.COMMAND,
    }
)
FOOTER_SIZE = 5


def footer_bytes(section_id: int) -> bytes:
    """The five bytes behind the payload of a section with that id."""
    return bytes((RecordType.FOOTER,)) + section_id.to_bytes(4, "big")


def find_footer(source: Source, start: int, section_id: int) -> int | None:
    """Return the offset of the first plausible footer at or after ``start``."""
    wanted = footer_bytes(section_id)
    at = start
    while True:
        data = source.read_at(at, _STEP + FOOTER_SIZE)
        hit = data.find(wanted)
        while hit >= 0:
            behind = source.read_at(at + hit + FOOTER_SIZE, 1)
            if not behind or behind[0] in _BEHIND_FOOTER:
                return at + hit
            hit = data.find(wanted, hit + 1)
        if len(data) < _STEP + FOOTER_SIZE:
            return None
        at += _STEP
