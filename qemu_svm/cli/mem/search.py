"""``svmstream mem search FILE [WORLD]``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from qemu_svm.cli import options
from qemu_svm.cli import output as printing
from qemu_svm.cli.mem import common
from qemu_svm.cli.status import EXIT_FINDINGS, print_error, report_damage
from qemu_svm.errors import AddressError
from qemu_svm.memory.spaces import Space

if TYPE_CHECKING:
    from qemu_svm.memory.memory import GuestMemory
    from qemu_svm.memory.search import Hit

_MOST = 1000


@click.command(
    "search",
    epilog="Examples: svmstream mem search dump.bin --string 'Linux version'; "
    "svmstream mem search dump.bin l2p --u64 0xffffffff81000000",
)
@common.options
@common.world_argument
@options.json_option
@common.smm_option
@click.option("--string", "text", metavar="TEXT", help="As UTF-8.")
@click.option("--hex", "digits", metavar="DIGITS", help="Bytes, such as 0f01d8.")
@click.option("--u64", "number", metavar="VALUE", help="Eight bytes, little-endian.")
@click.option(
    "--most", default=_MOST, show_default=True, metavar="N", type=click.IntRange(1, 1 << 20),
    help="Stop after so many.",
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

    Each hit is shown with its L1-physical address, and with the L2-physical
    ones of the same page if it is memory of an L2. The exit status is 1 if
    there is none.
    """
    pattern = _pattern(text, digits, number)
    with common.opened(file, channels, lender) as (dump, memory):
        from qemu_svm.memory.search import search

        one = common.place(memory, f"{world or 'l1p'}:0", vcpu, smm=smm)
        hits = search(one.space, pattern)
        found: list[dict[str, Any]] = []
        limited = False
        if not as_json:
            click.echo(common.heading(memory, one))
        try:
            reverse = _Roots(memory)
            for hit in islice(hits, most):
                document = reverse.describe(one.world, hit)
                found.append(document)
                if not as_json:
                    click.echo(_line(one.world, document))
            limited = next(hits, None) is not None
            if limited:
                print_error(f"more than {most} hits; --most N shows more")
        except AddressError as error:
            limited = True
            print_error(f"the search is incomplete: {error}")
        if as_json:
            from qemu_svm.render.json.mem import search_document

            printing.print_json(search_document(one.world, pattern, found, complete=not limited))
        return report_damage(dump) or (0 if found else EXIT_FINDINGS)


def _pattern(text: str | None, digits: str | None, number: str | None) -> bytes:
    given = [one for one in (text, digits, number) if one is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --string, --hex and --u64")
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
        raise click.UsageError("there is nothing to search for")
    return pattern


class _Roots:
    # L2-physical addresses of an L1-physical one, for every L2 that a vCPU runs.
    def __init__(self, memory: GuestMemory) -> None:
        from qemu_svm.memory.search import Reverse

        self._of: dict[int, Reverse] = {}
        for vcpu in memory.machine.vcpus:
            root = memory.l2_root(vcpu.index)
            if root is not None and root not in self._of:
                space = memory.world("l2p", vcpu.index)
                assert isinstance(space, Space)
                self._of[root] = Reverse(space)

    def describe(self, world: str, hit: Hit) -> dict[str, Any]:
        l2 = [
            {"root": f"{root:#x}", "address": f"{address:#x}"}
            for root, reverse in self._of.items()
            for address in reverse.addresses(hit.l1_physical)
        ]
        return {
            "address": f"{hit.address:#x}", "world": world,
            "l1_physical": f"{hit.l1_physical:#x}", "l2_physical": l2,
        }  # fmt: skip


def _line(world: str, hit: dict[str, Any]) -> str:
    words = [f"  {world}:{hit['address']}"]
    if world != "l1p":
        words.append(f"l1p:{hit['l1_physical']}")
    words += [f"l2p:{one['address']}" for one in hit["l2_physical"] if world != "l2p"]
    return "  ".join(words)
