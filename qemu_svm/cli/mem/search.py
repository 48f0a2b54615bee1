"""``svmstream mem search FILE [WORLD]``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options
from qemu_svm.cli.mem import common
from qemu_svm.cli.output import show
from qemu_svm.cli.status import EXIT_FINDINGS, print_error, report_damage
from qemu_svm.cli.verbs import verb
from qemu_svm.errors import AddressError
from qemu_svm.memory.reports import Place, SearchReport
from qemu_svm.memory.search import Found, Locator, search

if TYPE_CHECKING:
    from qemu_svm.memory.memory import GuestMemory

_MOST = 1000


@verb(
    "search",
    "svmstream mem search dump.bin --string 'Linux version'",
    "svmstream mem search dump.bin l2p --u64 0xffffffff81000000",
)
@common.options
@common.world_argument
@options.json_option
@common.smm_option
@click.option("--string", "text", metavar="TEXT", help="A text, in UTF-8.")
@click.option("--hex", "digits", metavar="DIGITS", help="Bytes, such as 0f01d8.")
@click.option("--u64", "number", metavar="VALUE", help="A number of eight bytes, little-endian.")
@click.option(
    "--most", default=_MOST, show_default=True, metavar="N", type=click.IntRange(1, 1 << 20),
    help="Stop after N hits.",
)  # fmt: skip
def command(
    *,
    file: str,
    lender: str | None,
    channels: Sequence[str],
    vcpu: int,
    world: str | None,
    as_json: bool,
    smm: bool,
    text: str | None,
    digits: str | None,
    number: str | None,
    most: int,
) -> int:
    """Find bytes in a world, by default in L1-physical memory.

    Each hit is shown with its L1-physical address, and with its L2-physical
    addresses if an L2 maps the page. The exit status is 1 if nothing is found.
    """
    pattern = _pattern(text, digits, number)
    with common.opened(file, channels, lender) as (dump, memory):
        place = common.place(memory, f"{world or 'l1p'}:0", vcpu, smm=smm)
        hits = _Hits(memory, place, pattern, most)
        if as_json:
            found = tuple(hits)
            show(SearchReport(place, pattern, found, complete=not hits.limited), as_json=True)
        else:
            show(SearchReport(place, pattern, hits), as_json=False)
        return report_damage(dump) or (0 if hits.count else EXIT_FINDINGS)


class _Hits:
    # Hits as they are found, up to a number; prints why there are not all.
    def __init__(self, memory: GuestMemory, place: Place, pattern: bytes, most: int) -> None:
        self._locator = Locator(memory)
        self._hits = search(place.space, pattern)
        self._most = most
        self.count = 0
        self.limited = False

    def __iter__(self) -> Iterator[Found]:
        try:
            for hit in islice(self._hits, self._most):
                self.count += 1
                yield self._locator.locate(hit)
            self.limited = next(self._hits, None) is not None
            if self.limited:
                print_error(f"more than {self._most} hits; --most N shows more")
        except AddressError as error:
            self.limited = True
            print_error(f"the search is incomplete: {error}")


def _pattern(text: str | None, digits: str | None, number: str | None) -> bytes:
    given = [one for one in (text, digits, number) if one is not None]
    if len(given) != 1:
        raise click.UsageError("give exactly one of --string, --hex and --u64")
    pattern = b""
    try:
        if text is not None:
            pattern = text.encode("utf-8", "surrogateescape")
        elif digits is not None:
            pattern = bytes.fromhex(digits.removeprefix("0x"))
        elif number is not None:
            pattern = (int(number, 0) & (1 << 64) - 1).to_bytes(8, "little")
    except ValueError as error:
        raise click.UsageError(f"'{given[0]}': {error}") from error
    if not pattern:
        raise click.UsageError("the pattern is empty")
    return pattern
