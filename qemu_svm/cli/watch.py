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

    from rich.console import Console
    from rich.text import Text

    from qemu_svm.qmp import Client
    from qemu_svm.qmp.address import Address
    from qemu_svm.qmp.watch import Sample


_MOST = 4000
"""Samples that are kept for the curves."""


@verb(
    "watch",
    "svmstream watch --qmp unix:/run/vm.qmp",
    "svmstream watch --qmp localhost:4444 --wait --json",
    "svmstream watch --domain guest --plot",
)
@options.vm_options()
@click.option("--interval", default=0.5, show_default=True, metavar="SECONDS",
              type=click.FloatRange(min=0.05), help="Time between two samples.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait for the next migration to start.")
@click.option("--plot", is_flag=True,
              help="Curves of what is left, sent and written; in a pipe, at the end.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document per line.")
@options.row_options
@options.output_options
@options.timeout_option
def command(
    *,
    address: Address,
    interval: float,
    wait: bool,
    plot: bool,
    as_json: bool,
    timeout: float,
) -> int:
    """Show a running migration, regardless of which client started it, and how it ended.

    Nothing in the VM is changed. Exit status: 0 completed, 5 failed or
    cancelled, 1 there was none (--wait waits for one), 4 the socket cannot be
    reached or was lost.
    """
    if plot and as_json:
        raise click.UsageError("--plot draws on the terminal: --json has the numbers")
    from qemu_svm.qmp import Client
    from qemu_svm.qmp.watch import Update
    from qemu_svm.render.text.base import console

    client = Client(address, timeout=timeout)
    out = console(options.color())
    if as_json or options.quiet() or not out.is_terminal:
        show = _print_changes(as_json=as_json)
        kept = _History()

        def changed(sample: Sample) -> None:
            if plot:
                kept.add(sample)
            show(sample)

        last = signals.run(_watch(client, interval, changed, wait=wait))
        if plot:
            output.print_lines(kept.lines(out))
        return _status(last)
    from rich.console import Group
    from rich.live import Live

    from qemu_svm.render.text.watch import render

    with Live(console=out, auto_refresh=False) as live:
        history = _History()

        def draw(sample: Sample) -> None:
            lines = [*render(Update(sample), title=str(address))]
            if plot:
                history.add(sample)
                lines += history.lines(out)
            live.update(Group(*lines), refresh=True)

        last = signals.run(_watch(client, interval, draw, wait=wait))
    return _status(last)


class _History:
    # The samples so far; of very many every second one, so that memory is bounded.
    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._every, self._number = 1, 0

    def add(self, sample: Sample) -> None:
        from dataclasses import replace

        if self._number % self._every == 0 or sample.migration.ended:
            # Without what is not drawn, which is most of it.
            self._samples.append(replace(sample, answer={}, capabilities={}, parameters={}))
        self._number += 1
        if len(self._samples) > _MOST:
            del self._samples[1::2]
            self._every *= 2

    def lines(self, out: Console) -> list[Text]:
        from qemu_svm.render.text.watch_plot import plot

        return [*plot(self._samples, out.width, plain=not out.encoding.startswith("utf"))]


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
