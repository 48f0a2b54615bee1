"""``svmstream lab list``."""

from __future__ import annotations

import click

from qemu_svm.cli import options
from qemu_svm.cli.output import show


@click.command("list")
@options.json_option
def command(*, as_json: bool) -> None:
    """List the suites in the cache, with exact versions, and the boxes that are up."""
    from qemu_svm.lab.inventory import inventory

    show(inventory(), as_json=as_json)
