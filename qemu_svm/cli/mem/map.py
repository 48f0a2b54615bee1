"""``svmstream mem map FILE [WORLD]``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options
from qemu_svm.cli import output as printing
from qemu_svm.cli.mem import common
from qemu_svm.cli.status import EXIT_FINDINGS, print_error, report_damage
from qemu_svm.errors import AddressError
from qemu_svm.memory.spaces import Space

if TYPE_CHECKING:
    from qemu_svm.memory.memory import GuestMemory
    from qemu_svm.memory.results import Run

_MOST_JSON = 1 << 17


@click.command(
    "map",
    epilog="Examples: svmstream mem map dump.bin l1p; svmstream mem map dump.bin l2v --leaves",
)
@common.options
@common.world_argument
@options.json_option
@common.smm_option
@click.option("--leaves", is_flag=True, help="With the targets: merged only where they follow too.")
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
    """Show what a world has: ranges of addresses with their permissions.

    For l1p these are the RAM blocks at their addresses, each with what says
    that it is there. WORLD is l1p, l1v, l2p or l2v; by default that of the
    vCPU.
    """
    with common.opened(file, channels, lender) as (dump, memory):
        name = world or memory.default_world(vcpu)
        one = common.place(memory, f"{name}:0", vcpu, smm=smm)
        if isinstance(one.space, Space):
            runs = one.space.runs() if leaves else one.space.ranges()
            limited = _paged(memory, one, runs, as_json=as_json)
        else:
            limited = False
            _physical(memory, one, as_json=as_json)
        return report_damage(dump) or (EXIT_FINDINGS if limited else 0)


def _physical(memory: GuestMemory, one: common.Place, *, as_json: bool) -> None:
    if as_json:
        from qemu_svm.render.json.mem import layout_document

        printing.print_json(layout_document(one.world, memory.layout, memory.ram.blocks))
        return
    from qemu_svm.render.text.mem_map import layout_lines

    click.echo(common.heading(memory, one))
    for line in layout_lines(memory.layout, memory.ram.blocks):
        click.echo(line)


def _paged(memory: GuestMemory, one: common.Place, runs: Iterator[Run], *, as_json: bool) -> bool:
    # Whether a limit was met.
    limit: list[AddressError] = []

    def all_of_them() -> Iterator[Run]:
        try:
            yield from runs
        except AddressError as error:
            limit.append(error)

    if as_json:
        from qemu_svm.render.json.mem import map_document

        found = list(islice(all_of_them(), _MOST_JSON))
        more = bool(limit) or next(runs, None) is not None
        printing.print_json(map_document(one.world, found, complete=not more))
        return more
    from qemu_svm.render.text.mem_map import lines

    click.echo(common.heading(memory, one))
    for line in lines(all_of_them()):
        click.echo(line)
    for error in limit:
        print_error(f"the list is incomplete: {error}")
    return bool(limit)
