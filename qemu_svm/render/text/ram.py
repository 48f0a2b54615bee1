"""The report of ``ram``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from qemu_svm.findings.results import RamReport
from qemu_svm.render.escape import printable
from qemu_svm.render.sizes import size_words
from qemu_svm.render.text.base import FAINT, HEADING, columns, entry, page_size_words
from qemu_svm.stream.ram.coverage import BlockCoverage
from qemu_svm.stream.ram.final import Final
from qemu_svm.stream.ram.read import Ram

_WIDTH = 64
_ROWS = 8
_LEGEND = ". zero   - up to half data   + more   # all data   ' ' never sent"


def render(result: RamReport, *, verbose: bool) -> Iterable[Text]:
    """Return pages, blocks, a map of each, and the files that were written.

    :param verbose: maps with a character for each page.
    """
    ram, covered, chosen = result.ram, result.coverage, result.chosen
    yield from _pages(result)
    yield Text("RAM blocks", HEADING)
    rows = [_row(ram, covered, number) for number in chosen]
    yield from columns(rows, ("size", "data", "zero", "never", "sent again", "name"))
    yield Text("")
    yield Text("Map", HEADING).append(f"  {_LEGEND}", FAINT)
    for number in chosen:
        yield from _map(ram, covered[number], number, result.span, each=verbose)
    if result.files:
        yield Text("")
        yield Text("Written", HEADING)
        yield from columns(
            [
                (size_words(ram.blocks[number].used_length), name)
                for number, name in result.files.items()
            ]
        )


def _pages(result: RamReport) -> Iterable[Text]:
    ram, covered = result.ram, result.coverage
    counts = ram.counts()
    kinds = {
        "normal": counts.normal,
        "zero": counts.zero,
        "XBZRLE": counts.xbzrle,
        "compressed": counts.compressed,
    }
    yield Text("Pages", HEADING)
    sent = ram.runs.records
    words = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    yield entry("sent", f"{sent} ({words})" if words else "0")
    every = sum(block.pages for block in covered)
    zero = sum(block.zero for block in covered)
    again = sum(block.again for block in covered)
    repeated = sum(block.repeated for block in covered)
    most = max((block.most for block in covered), default=0)
    yield entry("zero", f"{zero} of {every} at the end ({_share(zero, every)})")
    if again:
        times = "255 times or more" if most == 255 else f"{most} times"
        yield entry("sent again", f"{again} copies of {repeated} pages; one {times}")
    yield entry("page size", page_size_words(result.stream))
    for channel in ram.channels:
        how = " and ".join(channel.methods) or "nothing"
        yield entry(f"channel {channel.number}", f"{len(channel.packets)} packets ({how})")
    for extra in ram.extras:
        what = "resumed" if extra.kind == "resumed" else "requested pages"
        yield entry("connection", f"{extra.pages} pages ({what})")
    yield Text("")


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def _row(ram: Ram, covered: Sequence[BlockCoverage], number: int) -> tuple[str, ...]:
    block, pages = ram.blocks[number], covered[number]
    return (
        size_words(block.used_length),
        str(pages.data),
        str(pages.zero),
        str(pages.never),
        str(pages.again),
        block.name,
    )


def _map(
    ram: Ram, covered: BlockCoverage, number: int, span: tuple[int, int] | None, *, each: bool
) -> Iterable[Text]:
    size = ram.page_size
    first = min((span[0] if span else 0) // size, covered.pages)
    last = min(-(-span[1] // size) if span else covered.pages, covered.pages)
    pages = last - first
    if pages <= 0:
        return
    cell = max(1, -(-pages // (_WIDTH * _ROWS)))
    cell = 1 if each else 1 << (cell - 1).bit_length()
    yield Text(f"  {printable(ram.blocks[number].name)}").append(
        f", a character is {size_words(cell * size)}", FAINT
    )
    row, step = first, cell * _WIDTH
    while row < last:
        # The map of each page leaves out lines of which nothing was sent.
        empty = (covered.final.next_sent(row, last) - row) // step if each else 0
        row += empty * step
        cells = range(row, min(last, row + step), cell)
        if cells:
            text = "".join(_cell(covered.final, at, min(at + cell, last)) for at in cells)
            yield Text(f"  {row * size:>11x} ", FAINT).append(text.rstrip() or " ", "default")
        row += step


def _cell(final: Final, first: int, end: int) -> str:
    found, pages = final.tally(first, end), end - first
    if found.data == pages:
        return "#"
    if found.data:
        return "+" if 2 * found.data > pages else "-"
    return "." if found.zero else " "
