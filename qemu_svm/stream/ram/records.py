"""The payload of ``ram`` sections, record by record.

Every record starts with a 64-bit word: flags in the bits below the page size,
above them the offset in a RAM block (for MEM_SIZE: the sum of all blocks).
What follows depends on the flags::

    MEM_SIZE                the block list (:mod:`qemu_svm.stream.ram.blocks`)
    ZERO            [name]  the byte that fills the page
    PAGE            [name]  the page
    XBZRLE          [name]  1, 16-bit length, the delta
    COMPRESS_PAGE   [name]  32-bit length, a zlib stream
    EOS, HOOK, MULTIFD_FLUSH    nothing

The counted name is absent if CONTINUE is set; the block then is that of the previous
page, also across sections.  Later copies of a page replace earlier ones.

Nearly all of a stream are pages that continue a block: a scanner
(:mod:`qemu_svm.stream.ram.scan`) reads them without a call for each page;
:func:`_uncommon` reads the rest.

Source: QEMU ``migration/ram.c`` (``ram_save_setup``, ``save_page_header``,
``ram_load_precopy``), 5.2 to 10.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qemu_svm.errors import Malformed, Unsupported
from qemu_svm.limits import MIB
from qemu_svm.stream.constants import TARGET_PAGE_SIZE, RamFlag
from qemu_svm.stream.ram.blocks import BlockEntry, read_blocks
from qemu_svm.stream.ram.page_size import CONFIGURED, find_page_size, of_machine
from qemu_svm.stream.ram.runs import KINDS, PageKind, Place, RamRuns, Rows, page_counts
from qemu_svm.stream.ram.scan import (
    FILE_ROWS,
    LARGEST,
    XBZRLE_HEADER,
    Scanner,
    scan,
    scan_compiled,
    scan_file,
)
from qemu_svm.stream.reader import Reader, name_text
from qemu_svm.stream.records import Configuration, RamBlock, RamPages

_WINDOW = MIB
_MOST_TOP = (1 << 64) - 1
# As int: operations of IntFlag take as long as the rest of a record.
_EOS, _HOOK, _FLUSH = int(RamFlag.EOS), int(RamFlag.HOOK), int(RamFlag.MULTIFD_FLUSH)
_MEM_SIZE, _CONTINUE = int(RamFlag.MEM_SIZE), int(RamFlag.CONTINUE)
_PAGE_KINDS: dict[int, PageKind] = {
    int(RamFlag.ZERO): PageKind.ZERO,
    int(RamFlag.PAGE): PageKind.PAGE,
    int(RamFlag.XBZRLE): PageKind.XBZRLE,
    int(RamFlag.COMPRESS_PAGE): PageKind.COMPRESSED,
}


def _nothing(_flag: RamFlag) -> None:
    pass


@dataclass(slots=True)
class RamState:
    """What ``ram`` records carry over from one section to the next.

    :param sums: number of pages by :class:`~qemu_svm.stream.ram.runs.PageKind`.
    :param page_size_from: what says so; empty if that is not known yet.
    :param runs: filled with each page; None to count only.
    :param input: number of the input that is read, for ``runs``.
    :param section_id: of the section that is read.
    :param open_ended: the records end with the input, not only with EOS.
    :param scan: how common records are read.
    :param mark: called at each EOS, HOOK and MULTIFD_FLUSH.
    :param current: index of the block that CONTINUE refers to; -1 if there is none.
    :param tops: for each block a word above all words of its pages.
    :param index: of each block by name.
    """

    blocks: tuple[RamBlock, ...] = ()
    sums: list[int] = field(default_factory=lambda: [0] * KINDS)
    page_size: int = TARGET_PAGE_SIZE
    page_size_from: str = ""
    names: frozenset[str] = frozenset()
    mapped: bool = False
    shared: bool = False
    entries: tuple[BlockEntry, ...] = ()
    runs: RamRuns | None = None
    input: int = 0
    section_id: int | None = None
    open_ended: bool = False
    scan: Scanner = scan
    rows: Rows = field(default_factory=Rows)
    many: Rows | None = None
    mark: Callable[[RamFlag], None] = _nothing
    current: int = -1
    tops: tuple[int, ...] = ()
    index: dict[str, int] = field(default_factory=dict)

    @property
    def pages(self) -> RamPages:
        """Number of page records so far."""
        return page_counts(self.sums)

    def configure(self, configuration: Configuration) -> None:
        """Take page size and layout from the stream's configuration."""
        if not self.page_size_from:
            of = of_machine(configuration.machine)
            if configuration.page_bits is not None:
                of = 1 << configuration.page_bits, CONFIGURED
            self.page_size, self.page_size_from = of or (self.page_size, "")
        self.mapped = "mapped-ram" in configuration.capabilities
        self.shared = "x-ignore-shared" in configuration.capabilities

    def take_blocks(self, entries: tuple[BlockEntry, ...]) -> None:
        """Set the block list."""
        self.entries = entries
        self.blocks = tuple(entry.block for entry in entries)
        self.names = frozenset(block.name for block in self.blocks)
        self.index = {block.name: number for number, block in enumerate(self.blocks)}
        mask = self.page_size - 1
        # The highest word that the page after a block's last one could have.
        self.tops = tuple(
            min((block.used_length + mask) | mask, _MOST_TOP) for block in self.blocks
        )
        self.current = -1


def step_over(reader: Reader, state: RamState) -> None:
    """Move ``reader`` past the payload of one ``ram`` section.

    Reads every record up to and including EOS and adds to ``state``.

    :raises StreamError: a record is cut, invalid or not supported.
    """
    if not state.page_size_from:
        state.page_size, state.page_size_from = find_page_size(
            reader, state.section_id, mapped=state.mapped, shared=state.shared
        )
    rows = state.rows
    least = 8
    while True:
        if state.open_ended and reader.at_end() and reader.offset == reader.source.size():
            return
        data, at = _window(reader, state, least)
        least = 8
        if state.current >= 0:
            base, pages = reader.offset - at, (state.page_size, state.tops[state.current])
            stop, found, sums = state.scan(data, at, base, pages, rows)
            if found:
                _note(state, rows, found, sums)
                reader.offset = base + stop
                if stop > len(data) - 9:
                    _go_on(reader, state, pages)
                    least = _WINDOW  # past this window; the next is a large one
                continue
        if _uncommon(reader, state) == _EOS:
            state.mark(RamFlag.EOS)
            return


def _go_on(reader: Reader, state: RamState, pages: tuple[int, int]) -> None:
    # More of the records that filled a whole window, directly from the file if possible.
    if state.scan is not scan_compiled or state.page_size > LARGEST:
        return
    file = reader.backing_file()
    if file is None:
        return
    rows = state.many = state.many or Rows(FILE_ROWS)
    while True:
        stop, found, sums = scan_file(file, reader.offset, pages, rows)
        if not found:
            return
        _note(state, rows, found, sums)
        reader.offset = stop


def _note(state: RamState, rows: Rows, found: int, sums: Sequence[int]) -> None:
    for kind, pages in enumerate(sums):
        state.sums[kind] += pages
    if state.runs is not None:
        state.runs.extend(state.current, rows, found, sums, state.input)


def _window(reader: Reader, state: RamState, least: int) -> tuple[bytes, int]:
    # A block of input with at least one word.
    data, at = reader.window(least)
    have = len(data) - at
    if have >= 8:
        return data, at
    error = reader.truncated("the RAM records", 8, have, section="ram")
    if error.offset < reader.offset:
        # Only unencoded pages are skipped without reading their last byte.
        state.sums[PageKind.PAGE] -= 1
        if state.runs is not None:
            state.runs.drop_last()
    raise error


def _outside(state: RamState, offset: int, word: int) -> Malformed:
    # The error for a page that is not in its block.
    if state.current < 0:
        return Malformed(
            "page continues a RAM block, but none was named",
            offset=offset,
            section="ram",
            expected="a page with the name of its block first",
            found=f"{word:#x}",
        )
    block = state.blocks[state.current]
    return Malformed(
        "page outside its RAM block",
        offset=offset,
        section="ram",
        expected=f"an offset below {block.used_length:#x} in '{block.name}'",
        found=f"{word & -state.page_size:#x}",
    )


def _uncommon(reader: Reader, state: RamState) -> int:
    # One record of any kind; returns its flags.
    start, mask = reader.offset, state.page_size - 1
    word = reader.u64("a RAM record")
    flags, rest = word & mask, word & ~mask
    if flags == _EOS:
        return flags
    if flags in (_FLUSH, _HOOK):
        state.mark(RamFlag(flags))
        return flags
    if flags == _MEM_SIZE:
        _block_list(reader, state, rest)
        return flags
    kind = _PAGE_KINDS.get(flags & ~_CONTINUE & 0x3FF)
    if kind is None or flags & ~0x3FF:
        raise Malformed(
            "invalid flags in a RAM record",
            offset=start,
            section="ram",
            expected="one of ZERO, MEM_SIZE, PAGE, EOS, XBZRLE, HOOK, COMPRESS_PAGE, MULTIFD_FLUSH",
            found=f"{flags:#x}",
        )
    if state.mapped:
        # As QEMU: the pages are where the block list says.
        raise Malformed(
            "page record in a stream of mapped-ram",
            offset=start,
            section="ram",
            expected="MEM_SIZE or EOS",
            found=f"{kind.name}",
        )
    if not flags & _CONTINUE:
        name = name_text(reader.take(reader.u8("a RAM block name"), "a RAM block name"))
        if name not in state.index:
            raise Malformed(
                "page of a RAM block that is not in the block list",
                offset=start + 8,
                section="ram",
                found=repr(name),
            )
        state.current = state.index[name]
    if state.current < 0 or word + mask + 1 > state.tops[state.current]:
        raise _outside(state, start, word)
    data = reader.offset
    if kind is PageKind.ZERO and reader.peek(1) > b"\0":
        kind = PageKind.FILLED
    _content(reader, kind, mask + 1)
    state.sums[kind] += 1
    if state.runs is not None:
        place = Place(state.input, data)
        state.runs.add(state.current, rest // (mask + 1), 1, kind, place)
    return flags


def _content(reader: Reader, kind: PageKind, page_size: int) -> None:
    # Skip the bytes after the header of a page record.
    if kind in (PageKind.ZERO, PageKind.FILLED):
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
        if encoding != XBZRLE_HEADER:
            raise Unsupported(
                "unknown encoding of an XBZRLE page",
                offset=start,
                section="ram",
                expected=f"{XBZRLE_HEADER}",
                found=f"{encoding}",
            )
    else:
        size = reader.u32("a compressed page")
        most = page_size + page_size // 1000 + 64  # zlib's bound is a little less
    if size > most:
        raise Malformed(
            "encoded page is larger than a page",
            offset=start,
            section="ram",
            expected=f"at most {most} bytes",
            found=f"{size}",
        )
    reader.take(size, "an encoded RAM page")


def _block_list(reader: Reader, state: RamState, total: int) -> None:
    start = reader.offset
    size = state.page_size
    entries = read_blocks(reader, total, size, mapped=state.mapped, shared=state.shared)
    listed = [(entry.block.name, entry.block.used_length) for entry in entries]
    known = [(block.name, block.used_length) for block in state.blocks]
    if state.entries and (state.mapped or listed != known):
        # Runs refer to blocks by their index in the first list, bitmaps to its places.
        raise Malformed(
            "second list of RAM blocks" + ("" if listed == known else " differs from the first"),
            offset=start,
            section="ram",
            expected="one list" if state.mapped else f"the same {len(known)} blocks",
            found=f"{len(listed)} blocks of {total:#x} bytes",
        )
    state.take_blocks(entries)
    if not state.mapped:
        return
    from qemu_svm.stream.ram.mapped import MappedPages

    for number, entry in enumerate(state.entries):
        if entry.mapped is None:
            continue
        pages = MappedPages(reader.source, state.input, entry.mapped)
        state.sums[PageKind.PLACED] += pages.stored
        state.sums[PageKind.ABSENT] += entry.mapped.count - pages.stored
        if state.runs is not None:
            state.runs.map_block(number, pages)
