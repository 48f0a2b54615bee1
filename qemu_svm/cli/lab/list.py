"""``svmstream lab list``."""

from __future__ import annotations

import click

from qemu_svm.cli import options, progress, signals
from qemu_svm.cli.lab.options import mirror_option
from qemu_svm.cli.output import show
from qemu_svm.cli.verbs import verb


@verb(
    "list",
    "svmstream lab list",
    "svmstream lab list --available",
)
@click.option("--available", is_flag=True,
              help="The kernels that can be had from the mirror instead.")  # fmt: skip
@mirror_option
@options.json_option
def command(*, available: bool, mirror: str | None, as_json: bool) -> None:
    """List suites and kernels in the cache, with exact versions, and boxes that are up."""
    from qemu_svm.lab.inventory import inventory, offer

    if not available:
        if mirror is not None:
            raise click.UsageError("--mirror is for --available")
        show(inventory(), as_json=as_json)
        return
    signals.interrupt_on_termination()
    with progress.steps() as shown:
        found = offer(mirror=mirror, progress=shown)
    show(found, as_json=as_json)
