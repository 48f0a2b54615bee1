"""A self-describing stream, found from its end.

The description is the last record of a stream.  Before it stands the EOF byte,
and before that the device sections in the order in which the description
lists them, so the chain of sections can be followed backwards by their
described sizes.  What is found this way is only a claim: the caller proves it
by reading the chain forwards to the last byte.
"""

from __future__ import annotations

from dataclasses import dataclass

from qemu_svm.limits import KIB, Limits
from qemu_svm.source.base import Source
from qemu_svm.stream.constants import RecordType
from qemu_svm.stream.resync import FOOTER_SIZE
from qemu_svm.stream.vmdesc import Description, Device

_FIRST_LOOK = 256 * KIB
_HEADER = 5  # type byte and length
_SLACK = 64 * KIB  # how far a described size may be off


@dataclass(frozen=True, slots=True)
class Tail:
    """The last record: ``offset`` of its type byte, and the JSON text."""

    offset: int
    text: bytes

    @property
    def payload(self) -> int:
        """Offset of the JSON text."""
        return self.offset + _HEADER


def find_description(source: Source, limits: Limits) -> Tail | None:
    """Find a VMDESCRIPTION record that ends exactly where the input ends.

    The text holds no control characters, so the last byte 06 belongs either to
    the record's type or to its length.  Zero padding behind the record is
    ignored.  Reads at most ``limits.description_bytes`` and a little more.
    """
    size = source.size()
    window = _FIRST_LOOK
    most = limits.description_bytes + 2 * _FIRST_LOOK
    while True:
        start = max(0, size - window)
        data = source.read_at(start, size - start)
        end = len(data.rstrip(b"\0"))
        last = data.rfind(RecordType.VMDESCRIPTION.to_bytes(1, "big"), 0, end)
        for at in range(last, max(-1, last - _HEADER), -1):
            length = int.from_bytes(data[at + 1 : at + _HEADER], "big")
            if data[at] == RecordType.VMDESCRIPTION and at + _HEADER + length == end:
                return Tail(start + at, data[at + _HEADER : end])
        if start == 0 or window >= most or last >= _HEADER:
            return None
        window *= 4


def find_chain(
    source: Source, description: Description, end: int, *, footers: bool
) -> tuple[int, int] | None:
    """Follow the device sections backwards from ``end``, the offset of EOF.

    :returns: where the chain starts, and how many of the described devices
        come before it; None if not even the last device is there.
    """
    left = len(description.devices)
    for device in reversed(description.devices):
        start = _section_before(source, device, end, footers=footers)
        if start is None:
            break
        left, end = left - 1, start
    return None if left == len(description.devices) else (end, left)


def _section_before(source: Source, device: Device, end: int, *, footers: bool) -> int | None:
    # The header from its counted name on; type and section id stand before it.
    name = device.name.encode()
    if len(name) > 255:
        return None
    wanted = bytes((len(name),)) + name + device.instance_id.to_bytes(4, "big")
    size = 5 + len(wanted) + 4 + device.payload_size + (FOOTER_SIZE if footers else 0)
    for start in (end - size, max(0, end - size - _SLACK)):
        if start < 0:
            continue
        data = source.read_at(start, 5 + len(wanted) if start == end - size else end - start)
        hit = data.rfind(wanted)
        while hit >= 0:
            if hit >= 5 and data[hit - 5] == RecordType.FULL:
                return start + hit - 5
            hit = data.rfind(wanted, 0, hit)
    return None
