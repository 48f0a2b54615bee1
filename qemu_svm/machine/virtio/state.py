"""State that belongs to one type of virtio device, after the queues.

One function for each type that has any; it reads with a cursor and returns values.
Where the wire does not say what it holds (a setting of the source decides), a function
has several variants, and the caller keeps the one that leads to the known end.

Source: QEMU ``hw/net/virtio-net.c``, ``hw/block/virtio-blk.c``,
``hw/char/virtio-serial-bus.c``, ``hw/virtio/virtio-balloon.c``, ``virtio-iommu.c``,
``virtio-mem.c``, 5.2 to 10.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from qemu_svm.machine.cursor import Cursor, group
from qemu_svm.machine.virtio import layouts
from qemu_svm.machine.virtio.wire import simple, subsection
from qemu_svm.stream.vmstate.values import Value

_MOST = 1 << 12
"""Most elements of a list; with more, a device is not decoded."""

_MAPPINGS = 1 << 12
_MAPPING_SIZE = 29
"""Mappings of a domain that are shown one by one, and bytes of one on the wire."""

_PORT_WORD = 32
_RSS_MAX = 1 << 13
_CTRL_GUEST_OFFLOADS = 1 << 2

Reader = Callable[[Cursor, int, bytes], list[Value]]
"""Given a cursor, the guest's features and the device's configuration."""


def _net(cursor: Cursor, features: int, _config: bytes, *, pairs: bool) -> list[Value]:
    found = cursor.rows(layouts.NET)
    count = int(found[-1])
    found.append(cursor.bytes("mac_table", 6 * count))
    found += cursor.rows(layouts.NET_FILTER)
    if pairs:
        found += cursor.rows("max_queue_pairs:u16 curr_queue_pairs:u16")
        more = int(found[-1]) - 1
        if more > 0:
            found.append(cursor.numbers("tx_waiting_more", "u32", more))
    if features & _CTRL_GUEST_OFFLOADS:
        found.append(cursor.number("curr_guest_offloads", "u64"))
    rss = subsection(cursor, "virtio-net-device/rss", _rss)
    return found if rss is None else [*found, rss]


def _rss(cursor: Cursor, version: int) -> list[Value]:
    found = cursor.rows(layouts.NET_RSS)
    if version > 1:
        found.append(cursor.number("supported_hash_types", "u32"))
    found += cursor.rows(layouts.NET_RSS_KEY)
    count = int(found[-3])
    if count > _RSS_MAX:
        raise cursor.malformed("indirections_len", f"at most {_RSS_MAX}", str(count))
    return [*found, cursor.numbers("indirections_table", "u16", count)]


def _blk(
    cursor: Cursor, _features: int, _config: bytes, *, queues: bool, packed: bool
) -> list[Value]:
    found: list[Value] = []
    for index in range(_MOST):
        start = cursor.offset
        more = cursor.number("more", "u8")
        if not int(more):
            return [*found, group("requests_end", "struct", start, [more])]
        members = [more]
        if queues:
            members.append(cursor.number("queue", "u32"))
        members += _element(cursor, packed=packed)
        found.append(group(f"request_{index}", "struct", start, members))
    raise cursor.malformed("requests", f"at most {_MOST}", "more")


def _element(cursor: Cursor, *, packed: bool) -> Iterator[Value]:
    # A request that was taken from a queue and not returned: as it is in QEMU's memory.
    if packed:
        yield cursor.number("ndescs", "u32")
    yield from cursor.rows(layouts.ELEMENT)
    yield cursor.bytes("addresses", layouts.ELEMENT_ADDRESSES)
    yield cursor.bytes("buffers", layouts.ELEMENT_BUFFERS)


def _console(cursor: Cursor, _features: int, _config: bytes, *, packed: bool) -> list[Value]:
    found = cursor.rows(layouts.CONSOLE)
    ports = int(found[-1])
    if ports > _MOST:  # a big-endian guest's number
        ports = int.from_bytes(ports.to_bytes(4, "big"), "little")
    if ports > _MOST:
        raise cursor.malformed("max_nr_ports", f"at most {_MOST}", str(ports))
    found.append(cursor.numbers("ports_map", "u32", -(-ports // _PORT_WORD)))
    found.append(cursor.number("active_ports", "u32"))
    for index in range(min(int(found[-1]), _MOST)):
        start = cursor.offset
        members = cursor.rows(layouts.CONSOLE_PORT)
        if int(members[-1]):
            members += cursor.rows("iov_idx:u32 iov_offset:u64")
            members += _element(cursor, packed=packed)
        found.append(group(f"port_{index}", "struct", start, members))
    return found


def _balloon(cursor: Cursor, _features: int, _config: bytes) -> list[Value]:
    found = cursor.rows(layouts.BALLOON)
    for name, fields in layouts.DEVICE_SUBSECTIONS.items():
        one = simple(cursor, name, fields)
        if one is not None:
            found.append(one)
    return found


def _mem(cursor: Cursor, _features: int, _config: bytes, *, early: bool) -> list[Value]:
    # ``early``: size and bitmap were sent before RAM, as a section of their own.
    if early:
        return cursor.rows("usable_region_size:u64 requested_size:u64")
    found = cursor.rows(layouts.MEM_CHECKS)
    region, block = int(found[1]), int(found[2])
    found += cursor.rows("usable_region_size:u64 size:u64 requested_size:u64")
    words = -(-(region // max(1, block)) // 64)
    return [*found, cursor.bytes("bitmap", 8 * words, "bitmap")]


def _iommu(cursor: Cursor, _features: int, _config: bytes, *, bypass: bool) -> list[Value]:
    start = cursor.offset
    members = [cursor.number("count", "u32")]
    for index in range(min(int(members[0]), _MOST)):
        at = cursor.offset
        parts = [*_marker(cursor, 1), *cursor.rows("key:u64 id:u32")]
        parts += _mappings(cursor)
        parts += _endpoints(cursor)
        if bypass:
            parts.append(cursor.number("bypass", "u8"))
        members.append(group(f"[{index}]", "struct", at, parts))
    members += _marker(cursor, 0)
    found = [group("domains", "struct", start, members)]
    if bypass:
        found.append(cursor.number("config_bypass", "u8"))
    return found


def _mappings(cursor: Cursor) -> Iterator[Value]:
    start = cursor.offset
    members = [cursor.number("count", "u32")]
    count = int(members[0])
    for index in range(min(count, _MAPPINGS)):
        at = cursor.offset
        parts = [*_marker(cursor, 1), *cursor.rows("low:u64 high:u64 phys_addr:u64 flags:u32")]
        members.append(group(f"[{index}]", "struct", at, parts))
    if count > _MAPPINGS:
        members.append(cursor.bytes("rest", _MAPPING_SIZE * (count - _MAPPINGS)))
    members += _marker(cursor, 0)
    yield group("mappings", "struct", start, members)


def _endpoints(cursor: Cursor) -> Iterator[Value]:
    start = cursor.offset
    members: list[Value] = []
    while cursor.peek(1) == b"\1" and len(members) < _MOST:
        at = cursor.offset
        parts = [*_marker(cursor, 1), cursor.number("id", "u32")]
        members.append(group(f"[{len(members)}]", "struct", at, parts))
    members += _marker(cursor, 0)
    yield group("endpoints", "struct", start, members)


def _marker(cursor: Cursor, wanted: int) -> list[Value]:
    value = cursor.number("more" if wanted else "end", "u8")
    if int(value) != wanted:
        raise cursor.malformed(value.name, f"{wanted}", f"{int(value)}")
    return [value]


def _with(read: Callable[..., list[Value]], *settings: dict[str, bool]) -> tuple[Reader, ...]:
    def one(chosen: dict[str, bool]) -> Reader:
        return lambda cursor, features, config: read(cursor, features, config, **chosen)

    return tuple(map(one, settings))


_PACKED = ({"packed": False}, {"packed": True})

VARIANTS: Mapping[str, tuple[Reader, ...]] = {
    "net": _with(_net, {"pairs": False}, {"pairs": True}),
    "blk": _with(_blk, *({"queues": q, **p} for p in _PACKED for q in (False, True))),
    "console": _with(_console, *_PACKED),
    "balloon": (_balloon,),
    "mem": _with(_mem, {"early": True}, {"early": False}),
    "iommu": _with(_iommu, {"bypass": True}, {"bypass": False}),
}
"""By device type, what may follow the queues; types that are not here have nothing."""


def _nothing(_cursor: Cursor, _features: int, _config: bytes) -> list[Value]:
    return []


def variants(device: str) -> tuple[Reader, ...]:
    """Return the ways to read the state of a device type, to be tried in order."""
    return VARIANTS.get(device, (_nothing,))
