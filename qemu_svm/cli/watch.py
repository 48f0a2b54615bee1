"""``svmstream watch --qmp SOCKET``."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import EXIT_FINDINGS, EXIT_REFUSED, common, complain, interrupts, qmp_common

if TYPE_CHECKING:
    from collections.abc import Callable

    from qemu_svm.qmp import Client
    from qemu_svm.qmp.watch import Sample


@click.command(
    "watch",
    epilog="Examples: svmstream watch --qmp unix:/run/vm.qmp; "
    "svmstream watch --qmp localhost:4444 --wait --json",
)
@qmp_common.qmp_option
@click.option("--interval", default=0.5, show_default=True, metavar="SECONDS",
              type=click.FloatRange(min=0.05), help="Between two looks.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for a migration that begins from now on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a line.")
@qmp_common.timeout_option
def command(*, address: str, interval: float, wait: bool, as_json: bool, timeout: float) -> int:
    """Show a migration while it goes on, whoever started it, and how it ended.

    Nothing in the VM is changed.  Exit status: 0 completed, 5 failed or
    cancelled, 1 there was none (--wait waits for one), 4 the socket cannot be
    reached or was lost.
    """
    from qemu_svm.qmp import Client
    from qemu_svm.render.text.base import console

    client = Client(address, timeout=timeout)
    out = console()
    if as_json or not out.is_terminal:
        show = _changes(_print_document if as_json else _print_line)
        return _status(interrupts.run(_watch(client, interval, show, wait=wait)))
    from rich.console import Group
    from rich.live import Live

    from qemu_svm.render.text.watch import area

    with Live(console=out, auto_refresh=False) as live:

        def draw(sample: Sample) -> None:
            live.update(Group(*area(sample, address)), refresh=True)

        last = interrupts.run(_watch(client, interval, draw, wait=wait))
    return _status(last)


async def _watch(
    client: Client, interval: float, show: Callable[[Sample], None], *, wait: bool
) -> Sample:
    from qemu_svm.qmp.watch import watch

    async with client, aclosing(watch(client, interval=interval, wait=wait)) as samples:
        async for sample in samples:
            show(sample)
    return sample


def _print_line(sample: Sample, _before: Sample | None) -> None:
    from qemu_svm.render.text.watch import line

    common.print_lines([line(sample)])


def _print_document(sample: Sample, before: Sample | None) -> None:
    from qemu_svm.render.json.watch import document

    click.echo(json.dumps(document(sample, before)))


def _changes(say: Callable[[Sample, Sample | None], None]) -> Callable[[Sample], None]:
    # Tell a sample only if something changed, and what was told before it.
    before: Sample | None = None

    def show(sample: Sample) -> None:
        nonlocal before
        if before is None or not sample.same(before):
            say(sample, before)
        before = sample

    return show


def _status(last: Sample) -> int:
    if last.migration.status == "completed":
        return 0
    if last.migration.ended:
        return EXIT_REFUSED
    complain("there is no migration to watch, and there was none", "--wait waits for one")
    return EXIT_FINDINGS
