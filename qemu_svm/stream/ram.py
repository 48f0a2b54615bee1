"""The payload of ``ram`` sections, record by record.

Every record starts with a 64-bit word: flags in the bits below the page size,
above them the offset in a RAM block (for MEM_SIZE: the sum of all blocks).
What follows depends on the flags::

    MEM_SIZE                the block list (:mod:`qemu_svm.stream.ram_blocks`)
    ZERO            [name]  the byte that fills the page
    PAGE            [name]  the page
    XBZRLE          [name]  1, 16-bit length, the difference
    COMPRESS_PAGE   [name]  32-bit length, a zlib stream
    EOS, HOOK, MULTIFD_FLUSH    nothing

The counted name stands there unless CONTINUE is set; the block then is the
one of the page before, also across sections.  Later copies of a page replace
earlier ones.

The loop below handles what nearly all of a stream is, whole and zero pages that
continue a block, without a call per page; :func:`_uncommon` does the rest.

Source: QEMU ``migration/ram.c`` (``ram_save_setup``, ``save_page_header``,
``ram_load_precopy``), 5.2 to 10.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from qemu_svm.errors import Malformed, Unsupported
from qemu_svm.limits import MIB
from qemu_svm.stream.constants import TARGET_PAGE_SIZE, RamFlag
from qemu_svm.stream.mapped import page_runs
from qemu_svm.stream.ram_blocks import BlockEntry, read_blocks
from qemu_svm.stream.ram_gallop import gallop
from qemu_svm.stream.ram_runs import PageKind, RamRuns
from qemu_svm.stream.reader import Reader
from qemu_svm.stream.records import Configuration, RamBlock, RamPages
from qemu_svm.stream.text import name_text

_WINDOW = MIB
_SCALAR = 16  # records of a run that are read one by one before galloping
_XBZRLE_HEADER = 1
_PAGE_KINDS = {
    RamFlag.ZERO: PageKind.ZERO,
    RamFlag.PAGE: PageKind.PAGE,
    RamFlag.XBZRLE: PageKind.XBZRLE,
    RamFlag.COMPRESS_PAGE: PageKind.COMPRESSED,
}

_word_at = struct.Struct(">Q").unpack_from


def _nothing(_flag: RamFlag) -> None:
    pass


@dataclass(slots=True)
class RamState:
    """What ``ram`` records carry over from one section to the next.

    :param runs: where to note each page; None to count only.
    :param scalar: read record by record, for tests against the quick way.
    :param mark: called at each EOS and MULTIFD_FLUSH.
    """

    blocks: tuple[RamBlock, ...] = ()
    pages: RamPages = field(default_factory=RamPages)
    page_size: int = TARGET_PAGE_SIZE
    names: frozenset[str] = frozenset()
    mapped: bool = False
    shared: bool = False
    entries: tuple[BlockEntry, ...] = ()
    runs: RamRuns | None = None
    scalar: bool = False
    mark: Callable[[RamFlag], None] = _nothing
    current: int = -1
    tops: tuple[int, ...] = ()
    index: dict[str, int] = field(default_factory=dict)

    def configure(self, configuration: Configuration) -> None:
        """Take page size and layout from the stream's configuration."""
        if configuration.page_bits is not None:
            self.page_size = 1 << configuration.page_bits
        self.mapped = "mapped-ram" in configuration.capabilities
        self.shared = "x-ignore-shared" in configuration.capabilities

    def take_blocks(self, entries: tuple[BlockEntry, ...]) -> None:
        """Use a block list."""
        self.entries = entries
        self.blocks = tuple(entry.block for entry in entries)
        self.names = frozenset(block.name for block in self.blocks)
        self.index = {block.name: number for number, block in enumerate(self.blocks)}
        mask = self.page_size - 1
        # The highest word that the page behind a block's last one may have.
        self.tops = tuple((block.used_length + mask) | mask for block in self.blocks)
        self.current = -1


def step_over(reader: Reader, state: RamState) -> None:  # noqa: PLR0912, PLR0915 - hot
    """Move ``reader`` behind the payload of one ``ram`` section.

    Reads every record up to and including EOS and adds to ``state``.

    :raises Malformed: a record that cannot be.
    """
    page_size = state.page_size
    mask = page_size - 1
    same_page = int(RamFlag.PAGE | RamFlag.CONTINUE)
    same_zero = int(RamFlag.ZERO | RamFlag.CONTINUE)
    same_delta = int(RamFlag.XBZRLE | RamFlag.CONTINUE)
    eos = int(RamFlag.EOS)
    page_stride = 8 + page_size
    runs = state.runs
    record = runs.add if runs is not None else None
    short = (1 << 62) if state.scalar else _SCALAR
    normal = zero = deltas = 0
    least = 8
    try:
        while True:
            data, pos = _window(reader, state, least)
            least = _WINDOW
            base, last = reader.offset - pos, len(data) - 9
            top = state.tops[state.current] if state.current >= 0 else -1
            block = state.current
            flags = 0
            while pos <= last:
                word = _word_at(data, pos)[0]
                flags = word & mask
                first = pos
                if flags == same_page:
                    expect = word + page_size
                    pos += page_stride
                    limit = min(last, pos + short * page_stride)
                    while pos <= limit and _word_at(data, pos)[0] == expect:
                        expect += page_size
                        pos += page_stride
                    if limit < pos <= last:
                        count = gallop(data, pos, expect, page_stride, page_size)
                        expect += count * page_size
                        pos += count * page_stride
                    if expect > top:
                        raise _outside(state, base + first, word, page_stride)
                    count = (pos - first) // page_stride
                    normal += count
                    if record is not None:
                        record(block, word // page_size, count, 2, base + first + 8)
                elif flags == same_zero and not data[pos + 8]:
                    expect = word + page_size
                    pos += 9
                    limit = min(last, pos + short * 9)
                    while pos <= limit and _word_at(data, pos)[0] == expect and not data[pos + 8]:
                        expect += page_size
                        pos += 9
                    if limit < pos <= last:
                        count = gallop(data, pos, expect, 9, page_size)
                        expect += count * page_size
                        pos += count * 9
                    if expect > top:
                        raise _outside(state, base + first, word, 9)
                    count = (pos - first) // 9
                    zero += count
                    if record is not None:
                        record(block, word // page_size, count, 1, base + first + 8)
                elif flags == same_delta and data[pos + 8] == _XBZRLE_HEADER:
                    size = int.from_bytes(data[pos + 9 : pos + 11], "big")
                    if pos + 11 + size > len(data) or size > page_size:
                        break
                    if word + page_size > top:
                        raise _outside(state, base + pos, word, 0)
                    deltas += 1
                    if record is not None:
                        record(block, word // page_size, 1, 3, base + pos + 8)
                    pos += 11 + size
                else:
                    break
            reader.offset = base + pos
            if pos > last + 1:
                continue  # behind this window; the next is a large one
            least = 8
            if flags == eos and pos <= last:
                reader.offset += 8
                state.mark(RamFlag.EOS)
                return
            if _uncommon(reader, state, mask) == eos:
                state.mark(RamFlag.EOS)
                return
    finally:
        state.pages += RamPages(normal, zero, deltas)


def _window(reader: Reader, state: RamState, least: int) -> tuple[bytes, int]:
    # A block of input with at least one word.
    data, pos = reader.window(least)
    have = len(data) - pos
    if have >= 8:
        return data, pos
    error = reader.truncated("the RAM records", 8, have, section="ram")
    if error.offset < reader.offset and state.runs is not None:
        state.runs.drop_last()
    raise error


def _outside(state: RamState, offset: int, word: int, stride: int) -> Malformed:
    # The error for the first page of a run that its block does not have.
    if state.current < 0:
        return Malformed(
            "a page that continues no RAM block",
            offset=offset,
            section="ram",
            expected="the name of a block before",
            found=f"{word:#x}",
        )
    block = state.blocks[state.current]
    size, mask = state.page_size, state.page_size - 1
    skipped = max(0, (block.used_length + mask) // size - word // size)
    return Malformed(
        "a page outside its RAM block",
        offset=offset + skipped * stride,
        section="ram",
        expected=f"an offset below {block.used_length:#x} in '{block.name}'",
        found=f"{(word & ~mask) + skipped * size:#x}",
    )


def _uncommon(reader: Reader, state: RamState, mask: int) -> int:
    # Any one record, read whole; returns its flags.
    start = reader.offset
    word = reader.u64("a RAM record")
    flags, rest = word & mask, word & ~mask
    if flags == RamFlag.EOS:
        return flags
    if flags in (RamFlag.MULTIFD_FLUSH, RamFlag.HOOK):
        state.mark(RamFlag(flags))
        return flags
    if flags == RamFlag.MEM_SIZE:
        _block_list(reader, state, rest)
        return flags
    kind = _PAGE_KINDS.get(RamFlag(flags & ~RamFlag.CONTINUE & 0x3FF))
    if kind is None or flags & ~0x3FF:
        raise Malformed(
            "a RAM record with impossible flags",
            offset=start,
            section="ram",
            expected="one of ZERO, MEM_SIZE, PAGE, EOS, XBZRLE, HOOK, COMPRESS_PAGE, MULTIFD_FLUSH",
            found=f"{flags:#x}",
        )
    if not flags & RamFlag.CONTINUE:
        name = name_text(reader.take(reader.u8("a RAM block name"), "a RAM block name"))
        if name not in state.index:
            raise Malformed(
                "a page of a RAM block that the block list lacks",
                offset=start + 8,
                section="ram",
                found=repr(name),
            )
        state.current = state.index[name]
    if state.current < 0 or word + mask + 1 > state.tops[state.current]:
        raise _outside(state, start, word, 0)
    data = reader.offset
    _content(reader, kind, mask + 1)
    state.pages += RamPages(
        normal=int(kind is PageKind.PAGE),
        zero=int(kind is PageKind.ZERO),
        xbzrle=int(kind is PageKind.XBZRLE),
        compressed=int(kind is PageKind.COMPRESSED),
    )
    if state.runs is not None:
        state.runs.add(state.current, rest // (mask + 1), 1, kind, data)
    return flags


def _content(reader: Reader, kind: PageKind, page_size: int) -> None:
    # Step over what follows a page record's header.
    if kind is PageKind.ZERO:
        reader.take(1, "a zero page")
        return
    if kind is PageKind.PAGE:
        reader.take(page_size, "a RAM page")
        return
    start = reader.offset
    if kind is PageKind.XBZRLE:
        encoding = reader.u8("an XBZRLE page")
        size = int.from_bytes(reader.take(2, "an XBZRLE page"), "big")
        most = page_size
        if encoding != _XBZRLE_HEADER:
            raise Unsupported(
                "an XBZRLE page in an unknown encoding",
                offset=start,
                section="ram",
                expected=f"{_XBZRLE_HEADER}",
                found=f"{encoding}",
            )
    else:
        size = reader.u32("a compressed page")
        most = page_size + page_size // 1000 + 64  # zlib's bound is a little less
    if size > most:
        raise Malformed(
            "an encoded page that is larger than a page",
            offset=start,
            section="ram",
            expected=f"at most {most} bytes",
            found=f"{size}",
        )
    reader.take(size, "an encoded RAM page")


def _block_list(reader: Reader, state: RamState, total: int) -> None:
    state.take_blocks(read_blocks(reader, total, mapped=state.mapped, shared=state.shared))
    end = reader.offset
    normal = zero = 0
    for number, entry in enumerate(state.entries):
        if entry.mapped is None:
            continue
        for stored, page, count in page_runs(reader, entry.mapped):
            normal += count * stored
            zero += count * (not stored)
            if state.runs is not None:
                data = entry.mapped.pages + page * entry.mapped.page_size if stored else 0
                kind = PageKind.PLACED if stored else PageKind.ABSENT
                state.runs.add(number, page, count, kind, data)
    reader.offset = end
    state.pages += RamPages(normal, zero)
