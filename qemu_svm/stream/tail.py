"""The description and the device sections, found from the end of the stream.

The description is the last record of a stream.  Before it is the EOF byte, and
before that the device sections in the order in which the description lists them,
so the chain of sections can be followed backwards by their described sizes.  The
result is only a candidate: the caller proves it by reading the chain forwards to
the last byte.
"""

from __future__ import annotations

from qemu_svm.limits import KIB, Limits
from qemu_svm.source.base import Source
from qemu_svm.stream.constants import RecordType
from qemu_svm.stream.records import DESCRIPTION_HEADER, DescriptionRecord
from qemu_svm.stream.resync import FOOTER_SIZE, footer_bytes
from qemu_svm.stream.vmstate.description import Description, Device

_FIRST_LOOK = 256 * KIB
_SLACK = 64 * KIB  # by how much a described size may be wrong


def find_description(source: Source, limits: Limits) -> DescriptionRecord | None:
    """Find a VMDESCRIPTION record that ends exactly where the input ends.

    The text has no control characters, so the last byte 06 is either the record's
    type or part of its length.  Zero padding after the record is ignored.  Reads at
    most ``limits.description_bytes`` and a little more.
    """
    size = source.size()
    window = _FIRST_LOOK
    most = limits.description_bytes + 2 * _FIRST_LOOK
    while True:
        start = max(0, size - window)
        data = source.read_at(start, size - start)
        end = len(data.rstrip(b"\0"))
        last = data.rfind(RecordType.VMDESCRIPTION.to_bytes(1, "big"), 0, end)
        for at in range(last, max(-1, last - DESCRIPTION_HEADER), -1):
            length = int.from_bytes(data[at + 1 : at + DESCRIPTION_HEADER], "big")
            if data[at] == RecordType.VMDESCRIPTION and at + DESCRIPTION_HEADER + length == end:
                return DescriptionRecord(start + at, data[at + DESCRIPTION_HEADER : end])
        if start == 0 or window >= most or last >= DESCRIPTION_HEADER:
            return None
        window = min(4 * window, most)


def find_chain(
    source: Source, description: Description, end: int, *, footers: bool
) -> tuple[int, int] | None:
    """Follow the device sections backwards from ``end``, the offset of EOF.

    :returns: the offset of the first section of the chain, and how many of the
        described devices come before it; None if the last device is not found.
    """
    left = len(description.devices)
    for device in reversed(description.devices):
        start = _section_before(source, device, end, footers=footers)
        if start is None:
            break
        left, end = left - 1, start
    return None if left == len(description.devices) else (end, left)


def _section_before(source: Source, device: Device, end: int, *, footers: bool) -> int | None:
    # Compares the header from its counted name on; type and id are before it.
    name = device.name.encode()
    if len(name) > 255:
        return None
    wanted = bytes((len(name),)) + name + device.instance_id.to_bytes(4, "big")
    head = 5 + len(wanted) + 4
    start = end - head - device.payload_size - (FOOTER_SIZE if footers else 0)
    if start >= 0 and source.read_at(start, head)[5:].startswith(wanted):
        return start
    if not footers:
        return None
    # The described size is wrong: search backwards for a header whose id is that
    # of the footer before ``end``.
    low = max(0, start - _SLACK)
    data = source.read_at(low, end - low)
    hit = data.rfind(wanted)
    while hit >= 5:
        section_id = int.from_bytes(data[hit - 4 : hit], "big")
        if data[hit - 5] == RecordType.FULL and data.endswith(footer_bytes(section_id)):
            return low + hit - 5
        hit = data.rfind(wanted, 0, hit)
    return None
