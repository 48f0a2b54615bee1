"""``svmstream lab down``."""

from __future__ import annotations

import click

from qemu_svm.cli.lab.common import name_option


@click.command("down")
@name_option
@click.option("--all", "everything", is_flag=True, help="All that are up.")
def command(name: str | None, everything: bool) -> None:  # noqa: FBT001
    """End a box that stays; its share is removed if `lab up` made it."""
    from qemu_svm.lab.box.named import down, find, running

    for state in running() if everything else [find(name)]:
        down(state)
        click.echo(f"{state.name} is down", err=True)
