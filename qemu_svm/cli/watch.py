"""``svmstream watch --qmp SOCKET``."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import options, output, signals
from qemu_svm.cli.status import EXIT_FINDINGS, EXIT_REFUSED, print_error
from qemu_svm.cli.verbs import verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from qemu_svm.qmp import Client
    from qemu_svm.qmp.address import Address
    from qemu_svm.qmp.watch import Sample


@verb(
    "watch",
    "svmstream watch --qmp unix:/run/vm.qmp",
    "svmstream watch --qmp localhost:4444 --wait --json",
)
@options.vm_options()
@click.option("--interval", default=0.5, show_default=True, metavar="SECONDS",
              type=click.FloatRange(min=0.05), help="Time between two samples.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for the next migration to start.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
@options.output_options
@options.timeout_option
def command(*, address: Address, interval: float, wait: bool, as_json: bool, timeout: float) -> int:
    """Show a running migration, regardless of which client started it, and how it ended.

    Nothing in the VM is changed. Exit status: 0 completed, 5 failed or
    cancelled, 1 there was none (--wait waits for one), 4 the socket cannot be
    reached or was lost.
    """
    from qemu_svm.qmp import Client
    from qemu_svm.qmp.watch import Update
    from qemu_svm.render.text.base import console

    client = Client(address, timeout=timeout)
    out = console(options.color())
    if as_json or options.quiet() or not out.is_terminal:
        work = _watch(client, interval, _print_changes(as_json=as_json), wait=wait)
        return _status(signals.run(work))
    from rich.console import Group
    from rich.live import Live

    from qemu_svm.render.text.watch import render

    with Live(console=out, auto_refresh=False) as live:

        def draw(sample: Sample) -> None:
            live.update(Group(*render(Update(sample), title=str(address))), refresh=True)

        last = signals.run(_watch(client, interval, draw, wait=wait))
    return _status(last)


async def _watch(
    client: Client, interval: float, show: Callable[[Sample], None], *, wait: bool
) -> Sample:
    from qemu_svm.qmp.watch import watch

    async with client, aclosing(watch(client, interval=interval, wait=wait)) as samples:
        async for sample in samples:
            show(sample)
    return sample


def _print_changes(*, as_json: bool) -> Callable[[Sample], None]:
    from qemu_svm.qmp.watch import Update

    before: Sample | None = None

    def show(sample: Sample) -> None:
        nonlocal before
        if before is None or not sample.same(before):
            output.show(Update(sample, before), as_json=as_json, indent=None)
        before = sample

    return show


def _status(last: Sample) -> int:
    if last.migration.status == "completed":
        return 0
    if last.migration.ended:
        return EXIT_REFUSED
    print_error("no migration is running, and none has run", "--wait waits for one")
    return EXIT_FINDINGS
