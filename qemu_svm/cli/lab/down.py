"""``svmstream lab down``."""

from __future__ import annotations

import click

from qemu_svm.cli.lab.options import name_option
from qemu_svm.cli.verbs import verb


@verb(
    "down",
    "svmstream lab down",
)
@name_option
@click.option("--all", "everything", is_flag=True, help="All boxes that are up.")
def command(*, name: str | None, everything: bool) -> None:
    """Shut down a box; its share is removed if `lab up` made it."""
    from qemu_svm.lab.box.named import down, find, running

    for box in running() if everything else [find(name)]:
        down(box)
        click.echo(f"{box.name} is down", err=True)
