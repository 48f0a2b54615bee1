"""Sections that QEMU writes without vmstate, so no description covers them.

Each has its own format, read here item by item.  One generator for each format has
two uses: the walk drains it to find the end of the section, ``show`` keeps the items.
All numbers are big-endian.

=========================== ================================================
``block``                   disks (block migration, up to 9.0): chunks of 1 MiB
``dirty-bitmap``            which parts of a disk are dirty
``spapr/htab``              the hash page table of a ppc64 guest
``s390-storage_attributes`` CMMA: one byte for each page of an s390x guest
``s390-skeys``              storage keys: the same
``todclock``                the clock of an s390x guest
``pbs-state``               what Proxmox Backup Server knows of dirty blocks; only the QEMU
                            of Proxmox has this section
``.../vfio``                the state of an assigned device, opaque inside
=========================== ================================================

``ram`` has :mod:`qemu_svm.stream.ram.records`.

Source: QEMU ``migration/block.c`` (7.2), ``migration/block-dirty-bitmap.c``,
``hw/ppc/spapr.c`` (``htab_save_*``), ``hw/s390x/s390-stattrib.c``,
``s390-skeys.c``, ``tod.c``, ``hw/vfio/migration.c`` (7.2 and 10.2); ``pbs-state``: Proxmox's
``migration/pbs-state.c`` (64-bit length, then as many bytes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from qemu_svm.errors import LimitExceeded, Malformed
from qemu_svm.limits import MIB, Limits
from qemu_svm.stream.reader import Reader, name_text
from qemu_svm.stream.records import Kind, Record
from qemu_svm.stream.vmstate.values import Value

_KEEP = MIB  # bytes of data kept in a tree of values
_NO_TABLE = 0xFFFFFFFF
_VFIO = 0xFFFFFFFF_EF100000


class _Unknowable(Exception):
    # The end of the section can only be found by its footer.
    pass


class _Items:
    # Reads fields; ``done`` makes one item of the fields since the last item.
    def __init__(self, reader: Reader, section: str, keep: int = 0) -> None:
        self.reader = reader
        self.section = section
        self._keep = keep  # bytes of data that may still be kept
        self._fields: list[Value] = []
        self._start = reader.offset

    def number(self, name: str, size: int) -> int:
        at = self.reader.offset
        found = int.from_bytes(self.reader.take(size, name), "big")
        self._fields.append(Value(name, f"uint{8 * size}", at, size, found))
        return found

    def flags(self, bits: int) -> tuple[int, int]:
        # A 64-bit word: flags in the low bits, something else above them.
        at = self.reader.offset
        word = self.reader.u64("flags")
        low = word & (1 << bits) - 1
        self._fields.append(Value("flags", "uint64, low bits", at, 8, low))
        return low, word >> bits

    def high(self, name: str, value: int) -> None:
        # The bits above the flags of the word just read.
        at = self.reader.offset - 8
        self._fields.append(Value(name, "uint64, high bits", at, 8, value))

    def text(self, name: str) -> None:
        at = self.reader.offset
        found = name_text(self.reader.take(self.reader.u8(name), name))
        self._fields.append(Value(name, "counted string", at, self.reader.offset - at, found))

    def data(self, name: str, size: int) -> None:
        at = self.reader.offset
        found = None
        if size <= self._keep:
            found = self.reader.take(size, name)
            self._keep -= size
        else:
            self.reader.skip(size, name)
        if size:
            self._fields.append(Value(name, "data", at, size, found))

    def done(self, name: str) -> Value:
        children, self._fields = tuple(self._fields), []
        start, self._start = self._start, self.reader.offset
        return Value(name, "struct", start, self.reader.offset - start, None, children)

    def wrong(self, expected: str, found: int) -> Malformed:
        return Malformed(
            "unknown kind of record",
            offset=self._start,
            section=self.section,
            expected=expected,
            found=f"{found:#x}",
        )


_Read = Callable[[_Items, Kind], Iterator[Value]]


def _block(items: _Items, _kind: Kind) -> Iterator[Value]:
    while True:
        flags, high = items.flags(9)
        if flags == 2:
            yield items.done("end")
            return
        if flags == 4:
            items.high("percent", high)
            yield items.done("progress")
        elif flags in (1, 9):
            items.high("sector", high)
            items.text("device")
            items.data("content", MIB if flags == 1 else 0)
            yield items.done("chunk" if flags == 1 else "zero_chunk")
        else:
            raise items.wrong("1, 2, 4 or 9", flags)


def _dirty_bitmap(items: _Items, _kind: Kind) -> Iterator[Value]:
    while True:
        flags = items.number("flags", 1)
        if flags & 0x80:
            flags = flags << 8 | items.number("more_flags", 1)
            if flags & 0x80:
                flags = flags << 16 | items.number("most_flags", 2)
        if flags & 0x08:
            items.text("node")
        if flags & 0x04:
            items.text("bitmap")
        action = flags & 0x71
        if action == 0x01:
            yield items.done("end")
            return
        if action == 0x10:
            items.number("granularity", 4)
            items.number("bitmap_flags", 1)
            yield items.done("start")
        elif action == 0x20:
            yield items.done("complete")
        elif action == 0x40:
            items.number("first_sector", 8)
            items.number("sectors", 4)
            if flags & 0x02:
                yield items.done("zeroes")
            else:
                items.data("bits", items.number("size", 8))
                yield items.done("bits")
        else:
            raise items.wrong("0x1, 0x10, 0x20 or 0x40, apart from names", flags)


def _htab(items: _Items, kind: Kind) -> Iterator[Value]:
    # START has the size of the table (or a mark that there is none), other parts 0.
    shift = items.number("shift", 4)
    yield items.done("no_table" if shift == _NO_TABLE else "table" if shift else "header")
    if kind is Kind.START or shift:
        return
    while True:
        index = items.number("index", 4)
        valid, invalid = items.number("valid", 2), items.number("invalid", 2)
        items.data("entries", 16 * valid)
        if not (index or valid or invalid):
            yield items.done("end")
            return
        yield items.done("chunk")


def _of_pages(what: str, *, ends: int) -> _Read:
    # One byte for each page, in chunks.
    def read(items: _Items, _kind: Kind) -> Iterator[Value]:
        while True:
            flags, high = items.flags(12)
            if flags == 1:
                yield items.done("end")
                return
            if flags == 2:
                items.high("first_page", high)
                items.data(what, items.number("count", 8))
                yield items.done("chunk")
            elif flags in (4, ends):
                yield items.done("error" if flags == 4 else "done")
            else:
                raise items.wrong("1, 2, 4 or 8", flags)

    return read


def _todclock(items: _Items, _kind: Kind) -> Iterator[Value]:
    if items.number("present", 1):
        items.number("high", 1)
        items.number("low", 8)
    yield items.done("clock")


def _pbs_state(items: _Items, _kind: Kind) -> Iterator[Value]:
    items.data("state", items.number("size", 8))
    yield items.done("state")


def _vfio(items: _Items, _kind: Kind) -> Iterator[Value]:
    while True:
        tag = items.number("tag", 8) ^ _VFIO
        if tag == 2:  # the configuration: PCI state, whose layout is unknown here
            raise _Unknowable
        if tag == 4:
            items.data("data", items.number("size", 8))
            yield items.done("data")
        elif tag == 3:
            yield items.done("setup")
        elif tag in (1, 5, 6):
            yield items.done({1: "end", 5: "initial_data_sent", 6: "ready"}[tag])
            return
        else:
            raise items.wrong(f"{_VFIO:#x} and 1 to 6", tag ^ _VFIO)


_READERS: Mapping[str, _Read] = {
    "block": _block,
    "dirty-bitmap": _dirty_bitmap,
    "spapr/htab": _htab,
    "s390-storage_attributes": _of_pages("attributes", ends=8),
    "s390-skeys": _of_pages("keys", ends=4),
    "todclock": _todclock,
    "pbs-state": _pbs_state,
}


@dataclass(frozen=True, slots=True)
class Format:
    """How to read one kind of section."""

    name: str
    read: _Read

    def step_over(self, reader: Reader, kind: Kind) -> bool:
        """Move ``reader`` past the payload.

        :returns: False if the length of the rest is unknown.
        :raises StreamError: the payload is cut, or contradicts the format.
        """
        try:
            for _ in self.read(_Items(reader, self.name), kind):
                pass
        except _Unknowable:
            return False
        return True

    def values(self, reader: Reader, record: Record, limits: Limits) -> Value:
        """Read the payload of ``record`` as a tree, item by item.

        :raises LimitExceeded: more items than ``limits.section_values``.
        :raises StreamError: the payload contradicts the format.
        """
        found: list[Value] = []
        end = record.payload + record.payload_size
        try:
            for item in self.read(_Items(reader, self.name, _KEEP), record.kind):
                if len(found) >= limits.section_values:
                    raise LimitExceeded(
                        "the section has more values than the limit allows",
                        offset=item.offset,
                        section=self.name,
                        expected=f"at most {limits.section_values}",
                    )
                found.append(_numbered(len(found), item))
        except _Unknowable:
            pass
        last = found[-1].end if found else record.payload
        if last < end:
            found.append(_numbered(len(found), Value("rest", "opaque", last, end - last)))
        return Value(
            self.name, record.kind.value, record.payload, record.payload_size, None, tuple(found)
        )


def _numbered(number: int, item: Value) -> Value:
    return Value(f"[{number}]", "item", item.offset, item.size, None, (item,))


def format_of(record: Record) -> Format | None:
    """Return the format of a section, by its name; None if vmstate wrote it."""
    name = record.name or ""
    read = _READERS.get(name)
    if read is None and (name == "vfio" or name.endswith("/vfio")) and record.kind is not Kind.FULL:
        read = _vfio
    return None if read is None else Format(name, read)
