"""``svmstream watch --qmp SOCKET``."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import click

from qemu_svm.cli import EXIT_FINDINGS, EXIT_REFUSED, common, complain

if TYPE_CHECKING:
    from collections.abc import Callable

    from qemu_svm.qmp.watch import Sample


@click.command(
    "watch",
    epilog="Examples: svmstream watch --qmp unix:/run/vm.qmp; "
    "svmstream watch --qmp localhost:4444 --wait --json",
)
@click.option("--qmp", "socket", required=True, metavar="SOCKET",
              help="QEMU's QMP socket: unix:PATH or HOST:PORT.")  # fmt: skip
@click.option("--interval", default=0.5, show_default=True, metavar="SECONDS",
              type=click.FloatRange(min=0.05), help="Between two looks.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for a migration that begins from now on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a line.")
def command(*, socket: str, interval: float, wait: bool, as_json: bool) -> int:
    """Show a migration while it goes on, whoever started it, and how it ended.

    Nothing in the VM is changed.  Exit status: 0 completed, 5 failed or
    cancelled, 1 there was none (--wait waits for one), 4 the socket cannot be
    reached or was lost.
    """
    if as_json:
        return _status(asyncio.run(_watch(socket, interval, wait, _json_printer())))
    from qemu_svm.render.text import console

    out = console()
    if not out.is_terminal:
        return _status(asyncio.run(_watch(socket, interval, wait, _line_printer())))
    from rich.console import Group
    from rich.live import Live

    from qemu_svm.render.watch_text import area

    with Live(console=out, auto_refresh=False) as live:

        def show(sample: Sample) -> None:
            live.update(Group(*area(sample, socket)), refresh=True)

        return _status(asyncio.run(_watch(socket, interval, wait, show)))


async def _watch(
    socket: str, interval: float, wait: bool, show: Callable[[Sample], None]  # noqa: FBT001
) -> Sample:  # fmt: skip
    from qemu_svm.qmp import Client
    from qemu_svm.qmp.watch import watch

    async with Client.connect(socket) as client:
        async for sample in watch(client, interval=interval, wait=wait):
            show(sample)
    return sample


def _line_printer() -> Callable[[Sample], None]:
    from qemu_svm.render.watch_text import line

    last: Sample | None = None

    def show(sample: Sample) -> None:
        nonlocal last
        if last is None or not sample.same(last):
            common.print_lines([line(sample)])
        last = sample

    return show


def _json_printer() -> Callable[[Sample], None]:
    from qemu_svm.render.watch_document import document

    last: Sample | None = None

    def show(sample: Sample) -> None:
        nonlocal last
        if last is None or not sample.same(last):
            click.echo(json.dumps(document(sample, last)))
        last = sample

    return show


def _status(last: Sample) -> int:
    from qemu_svm.qmp.watch import COMPLETED

    if last.migration.status == COMPLETED:
        return 0
    if last.ended:
        return EXIT_REFUSED
    complain("there is no migration to watch, and there was none", "--wait waits for one")
    return EXIT_FINDINGS
