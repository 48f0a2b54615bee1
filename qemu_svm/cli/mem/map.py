"""``svmstream mem map FILE [WORLD]``."""

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
from qemu_svm.memory.reports import MappedRanges, PhysicalMap, Place
from qemu_svm.memory.spaces import Space

if TYPE_CHECKING:
    from qemu_svm.memory.results import Run

_MOST_JSON = 1 << 17


@verb(
    "map",
    "svmstream mem map dump.bin l1p",
    "svmstream mem map dump.bin l2v --leaves",
)
@common.options
@common.world_argument
@options.json_option
@common.smm_option
@click.option(
    "--leaves",
    is_flag=True,
    help="Show targets; ranges are merged only if these are contiguous too.",
)
def command(
    *,
    file: str,
    lender: str | None,
    channels: Sequence[str],
    vcpu: int,
    world: str | None,
    as_json: bool,
    smm: bool,
    leaves: bool,
) -> int:
    """Show what is mapped in a world: ranges of addresses with their permissions.

    For l1p these are the RAM blocks at their addresses, each with the evidence for
    its address. WORLD is l1p, l1v, l2p or l2v; the default is the virtual memory of
    the level that the vCPU was running.
    """
    with common.opened(file, channels, lender) as (dump, memory):
        name = world or memory.default_world(vcpu)
        place = common.place(memory, f"{name}:0", vcpu, smm=smm)
        space = place.space
        if isinstance(space, Space):
            limited = _show_ranges(place, space.runs() if leaves else space.ranges(),
                                   as_json=as_json)  # fmt: skip
        else:
            limited = False
            show(PhysicalMap(place, memory.layout, memory.ram.blocks), as_json=as_json)
        return report_damage(dump) or (EXIT_FINDINGS if limited else 0)


def _show_ranges(place: Place, runs: Iterator[Run], *, as_json: bool) -> bool:
    # Whether a limit was met.
    limits: list[AddressError] = []

    def until_limit() -> Iterator[Run]:
        try:
            yield from runs
        except AddressError as error:
            limits.append(error)

    if as_json:
        found = tuple(islice(until_limit(), _MOST_JSON))
        more = bool(limits) or next(runs, None) is not None
        show(MappedRanges(place, found, complete=not more), as_json=True)
        return more
    show(MappedRanges(place, until_limit()), as_json=False)
    for error in limits:
        print_error(f"the list is incomplete: {error}")
    return bool(limits)
