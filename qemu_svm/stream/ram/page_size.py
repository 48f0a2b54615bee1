"""The page size of a stream that does not state it.

The description has it, and for some targets the configuration.  Without both (``suppress-vmdesc``,
postcopy), the machine tells it if it is a PC; else the headers of mapped-ram or the page
records do.  These show it in three ways:

* the flags of a record are below the page size, the bits above are an address in a block;
* the content of a page has its length: with another one, what follows is no record;
* all pages of a block are sent, so their addresses increase by it.

Source: QEMU ``migration/ram.c`` (``save_page_header``), ``target/*/cpu-param.h``
(``TARGET_PAGE_BITS``: 8 on AVR, 10 on Arm boards, 12 on x86, 13 on Alpha and SPARC), 10.2.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from qemu_svm.errors import StreamError
from qemu_svm.stream.constants import TARGET_PAGE_SIZE, RamFlag, RecordType
from qemu_svm.stream.ram.blocks import read_blocks
from qemu_svm.stream.reader import Reader, name_text
from qemu_svm.stream.records import RamBlock

SMALLEST, LARGEST = 1 << 8, 1 << 24
"""Page sizes that a stream may have."""

GIVEN = "given"
DESCRIBED = "description"
CONFIGURED = "configuration"
OF_MACHINE = "x86 machine"
MAPPED = "mapped-ram headers"
ASSUMED = "assumed"

_CANDIDATES = (4096, 8192, 1024, 16384, 256, 512, 2048, 32768, 65536)
_X86 = re.compile(r"(pc|pc-.*|q35|isapc|microvm|xenfv.*|xenpv|nitro.*)")
_MOST_RECORDS = 512
_FEW = 4
_CONTINUE = int(RamFlag.CONTINUE)
_MARKS = (RamFlag.HOOK, RamFlag.MULTIFD_FLUSH)


def is_page_size(size: int | None) -> bool:
    """Whether a stream may have pages of this size."""
    return size is not None and SMALLEST <= size <= LARGEST and not size & (size - 1)


def of_machine(machine: str) -> tuple[int, str] | None:
    """Return the page size of a machine type, and the reason; None if it is not a PC."""
    return (TARGET_PAGE_SIZE, OF_MACHINE) if _X86.fullmatch(machine) else None


@dataclass(slots=True)
class _Followed:
    # How far page records go with a page size.
    size: int
    records: int = 0
    whole: int = 0  # pages with content, before another record
    step: int = 0  # greatest common divisor of the distances of addresses


def find_page_size(
    source: Reader, section_id: int | None, *, mapped: bool, shared: bool
) -> tuple[int, str]:
    """Return the page size that the records of the ``ram`` section have, and the reason in words.

    :param source: at the section's payload; it is not moved.
    :param section_id: of the section.
    :param mapped: mapped-ram is on.
    :param shared: x-ignore-shared is on.
    """
    start = source.offset
    word = int.from_bytes(source.peek(8), "big")
    if word & (SMALLEST - 1) != RamFlag.MEM_SIZE:
        return TARGET_PAGE_SIZE, ASSUMED
    reader = Reader(source.source, start + 8)
    try:
        entries = read_blocks(reader, word & -SMALLEST, None, mapped=mapped, shared=shared)
    except StreamError:
        return TARGET_PAGE_SIZE, ASSUMED
    if mapped:
        sizes = [entry.mapped.page_size for entry in entries if entry.mapped is not None]
        return (sizes[0], MAPPED) if sizes else (TARGET_PAGE_SIZE, ASSUMED)
    blocks = {entry.block.name: entry.block for entry in entries}
    found = []
    for size in _CANDIDATES:
        if word & (size - 1) == RamFlag.MEM_SIZE:
            followed = _Followed(size)
            if _follow(Reader(source.source, reader.offset), followed, blocks, section_id):
                found.append(followed)
    return _chosen(found)


def _chosen(found: list[_Followed]) -> tuple[int, str]:
    # The one that explains most; 4096 where several do.
    whole = [one for one in found if one.whole]
    exact = [one for one in whole or found if one.step == one.size and one.records >= _FEW]
    for one in (*exact, *whole):
        others = "no other" if len(found) == 1 else "it best"
        return one.size, f"{one.records} page records fit {others}"
    sizes = [one.size for one in found]
    if TARGET_PAGE_SIZE in sizes or not sizes:
        return TARGET_PAGE_SIZE, ASSUMED
    return max(sizes), f"{found[0].records} page records do not fit {TARGET_PAGE_SIZE}"


def _follow(
    reader: Reader, found: _Followed, blocks: dict[str, RamBlock], section_id: int | None
) -> bool:
    # Whether the records can be read with a page size, up to what is no page record.
    block: RamBlock | None = None
    last, content = -1, False
    mask = found.size - 1
    while found.records < _MOST_RECORDS:
        head = reader.peek(9)
        if len(head) < 9:
            return True  # the input ends
        word = int.from_bytes(head[:8], "big")
        flags, address = word & mask, word & ~mask
        if flags == RamFlag.EOS or flags in _MARKS:
            found.whole += content
            content = False
            reader.offset += 8
            if flags == RamFlag.EOS:
                more = _next_part(reader, section_id)
                if more is not True:
                    return more is None
            continue
        kind = flags & ~_CONTINUE
        if kind not in (RamFlag.ZERO, RamFlag.PAGE, RamFlag.XBZRLE, RamFlag.COMPRESS_PAGE):
            return False
        found.whole += content
        reader.offset += 8
        if not flags & _CONTINUE:
            size = head[8]
            block = blocks.get(name_text(reader.peek(1 + size)[1:]))
            reader.offset += 1 + size
            last = -1
        if block is None or address >= block.used_length:
            return False
        if last >= 0:
            found.step = math.gcd(found.step, abs(address - last))
        last = address
        found.records += 1
        content = kind == RamFlag.PAGE
        reader.offset += _length(reader, kind, found.size)
    return True


def _length(reader: Reader, kind: int, page_size: int) -> int:
    # Bytes after the header of a record.
    if kind == RamFlag.ZERO:
        return 1
    if kind == RamFlag.PAGE:
        return page_size
    if kind == RamFlag.XBZRLE:
        return 3 + int.from_bytes(reader.peek(3)[1:], "big")
    return 4 + int.from_bytes(reader.peek(4), "big")


def _next_part(reader: Reader, section_id: int | None) -> bool | None:
    # After EOS: True if more of the section follows, None if something else does, False
    # if nothing that can be here.
    number = b"" if section_id is None else section_id.to_bytes(4, "big")
    head = reader.peek(5)
    if head == bytes((RecordType.FOOTER,)) + number:
        reader.offset += 5
        head = reader.peek(5)
    if not head:
        return None
    if head[0] in (RecordType.PART, RecordType.END) and head[1:] == number:
        reader.offset += 5
        return True
    try:
        RecordType(head[0])
    except ValueError:
        return False
    return None
