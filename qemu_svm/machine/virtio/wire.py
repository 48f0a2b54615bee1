"""Subsections inside the opaque field of a virtio device, and arrays of all its queues.

Source: QEMU ``migration/vmstate.c`` (``vmstate_subsection_save``).
"""

from __future__ import annotations

from collections.abc import Callable

from qemu_svm.machine.cursor import Cursor, group
from qemu_svm.machine.virtio import layouts
from qemu_svm.stream.constants import RecordType
from qemu_svm.stream.vmstate.values import Value


def subsection(
    cursor: Cursor, name: str, read: Callable[[Cursor, int], list[Value]]
) -> Value | None:
    """Read the subsection ``name``; None if something else comes next.

    :param read: reads its fields, given the cursor and the version.
    :raises Malformed: it does not hold what ``read`` reads.
    """
    wanted = bytes((RecordType.SUBSECTION, len(name))) + name.encode()
    if cursor.peek(len(wanted)) != wanted:
        return None
    start = cursor.offset
    cursor.take(len(wanted), name)
    version = cursor.number("version_id", "u32")
    return group(name, "subsection", start, [version, *read(cursor, int(version))])


def simple(cursor: Cursor, name: str, rows: str) -> Value | None:
    """Read a subsection of fields listed as :meth:`Cursor.rows` reads them."""
    return subsection(cursor, name, lambda at, _version: at.rows(rows))


def next_name(cursor: Cursor) -> str:
    """Name of the subsection that comes next; empty if none does."""
    head = cursor.peek(2)
    if len(head) < 2 or head[0] != RecordType.SUBSECTION:
        return ""
    return cursor.peek(2 + head[1])[2:].decode("ascii", "replace")


def per_queue(cursor: Cursor, name: str, fields: str, queues: int) -> Value:
    """Read an array with one element for each possible queue.

    Elements after the last queue that are all the same are one value, ``rest``.

    :param queues: how many the device has.
    """
    start, at = cursor.offset, cursor.at
    cursor.rows(fields)
    size = cursor.at - at
    cursor.at = at
    data = cursor.peek(size * layouts.QUEUES)
    last, count = data[-size:], layouts.QUEUES
    while count > queues and data[(count - 1) * size : count * size] == last:
        count -= 1
    elements = []
    for index in range(count):
        one = cursor.offset
        elements.append(group(f"[{index}]", "struct", one, cursor.rows(fields)))
    if count < layouts.QUEUES:
        elements.append(cursor.bytes("rest", size * (layouts.QUEUES - count), "unused_buffer"))
    return group(name, "array", start, elements)
