"""The payload of ``ram`` sections: block list and page records.

Only the ordinary precopy kind is read: block list, zero pages and whole pages.
Records of another kind are named in an :class:`~qemu_svm.errors.Unsupported`.

Source: QEMU ``migration/ram.c`` (``ram_save_setup``, ``save_page_header``,
``ram_load_precopy``), 5.2 to 10.2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from qemu_svm.errors import Malformed, Unsupported
from qemu_svm.stream.constants import TARGET_PAGE_SIZE, RamFlag
from qemu_svm.stream.reader import Reader
from qemu_svm.stream.records import Configuration, RamBlock, RamPages
from qemu_svm.stream.structs import RamBlock as RamBlockLayout
from qemu_svm.stream.text import name_text

_KINDS = {
    RamFlag.FULL: "an obsolete whole-RAM record",
    RamFlag.XBZRLE: "an XBZRLE page",
    RamFlag.HOOK: "an RDMA hook",
    RamFlag.COMPRESS_PAGE: "a zlib-compressed page",
    RamFlag.MULTIFD_FLUSH: "a multifd flush: the pages travelled on other channels",
}
_MOST_BLOCKS = 4096


@dataclass(slots=True)
class RamState:
    """What ``ram`` records carry over from one section to the next."""

    blocks: tuple[RamBlock, ...] = ()
    pages: RamPages = field(default_factory=RamPages)
    page_size: int = TARGET_PAGE_SIZE
    names: frozenset[str] = frozenset()
    layout: str | None = None

    def configure(self, configuration: Configuration) -> None:
        """Take page size and layout from the stream's configuration."""
        if configuration.page_bits is not None:
            self.page_size = 1 << configuration.page_bits
        for capability in configuration.capabilities:
            if capability in ("mapped-ram", "x-ignore-shared"):
                self.layout = capability


_word_at = struct.Struct(">Q").unpack_from
_SAME_BLOCK_PAGE = RamFlag.PAGE | RamFlag.CONTINUE
_SAME_BLOCK_ZERO = RamFlag.ZERO | RamFlag.CONTINUE


def step_over(reader: Reader, state: RamState) -> None:
    """Move ``reader`` behind the payload of one ``ram`` section.

    Reads every record up to and including EOS and adds to ``state``.

    :raises Unsupported: a record of a kind that this version does not read.
    """
    if state.layout is not None:
        raise Unsupported(
            f"RAM in the layout of '{state.layout}'",
            offset=reader.offset,
            section="ram",
            hint="this version reads ordinary precopy RAM only",
        )
    page_size = state.page_size
    mask = page_size - 1
    page_flags, zero_flags, eos = map(int, (_SAME_BLOCK_PAGE, _SAME_BLOCK_ZERO, RamFlag.EOS))
    normal = zero = 0
    try:
        while True:
            data, pos = reader.window(8)
            base, last = reader.offset - pos, len(data) - 8
            if pos > last:
                raise reader.truncated("the RAM records", 8, len(data) - pos, section="ram")
            flags = 0
            while pos <= last:
                flags = _word_at(data, pos)[0] & mask
                if flags == page_flags:
                    normal += 1
                    pos += 8 + page_size
                elif flags == zero_flags:
                    zero += 1
                    pos += 9
                else:
                    break
            reader.offset = base + pos
            if pos > last:
                continue
            if flags == eos:
                reader.offset += 8
                return
            kind = _uncommon(reader, state, mask)
            normal += kind == RamFlag.PAGE
            zero += kind == RamFlag.ZERO
    finally:
        state.pages += RamPages(normal, zero)


def _uncommon(reader: Reader, state: RamState, mask: int) -> int:
    # A record that does not just continue a block: returns PAGE or ZERO if it was one.
    start = reader.offset
    word = reader.u64("a RAM record")
    flags, rest = word & mask, word & ~mask
    if flags == RamFlag.MEM_SIZE:
        state.blocks = _block_list(reader, rest)
        state.names = frozenset(block.name for block in state.blocks)
        return 0
    for flag, words in _KINDS.items():
        if flags & flag:
            raise Unsupported(
                f"{words} ({flag.name})",
                offset=start,
                section="ram",
                hint="this version reads ordinary precopy RAM only",
            )
    if flags not in (RamFlag.PAGE, RamFlag.ZERO):
        raise Malformed(
            "a RAM record with impossible flags",
            offset=start,
            section="ram",
            expected="one of ZERO, MEM_SIZE, PAGE, EOS",
            found=f"{flags:#x}",
        )
    name = reader.take(reader.u8("a RAM block name"), "a RAM block name")
    if name_text(name) not in state.names:
        raise Malformed(
            "a page of a RAM block that the block list lacks",
            offset=start + 8,
            section="ram",
            found=repr(name_text(name)),
        )
    reader.take(mask + 1 if flags == RamFlag.PAGE else 1, "a RAM page")
    return flags


def _block_list(reader: Reader, total: int) -> tuple[RamBlock, ...]:
    blocks: list[RamBlock] = []
    listed = 0
    while listed < total:
        start = reader.offset
        entry = reader.structure(RamBlockLayout, "a RAM block of the block list")
        if not entry.name:
            # A name is never empty: this is the page size that postcopy adds.
            raise Unsupported(
                "a RAM block with a page size of its own (postcopy)",
                offset=start,
                section="ram",
                hint="this version reads ordinary precopy RAM only",
            )
        blocks.append(RamBlock(name_text(entry.name), entry.used_length, start))
        listed += entry.used_length
        if listed > total or len(blocks) > _MOST_BLOCKS:
            raise Malformed(
                "the RAM blocks do not add up to the total",
                offset=start,
                section="ram",
                expected=f"{total:#x} bytes",
                found=f"{listed:#x} in {len(blocks)} blocks",
            )
    return tuple(blocks)
