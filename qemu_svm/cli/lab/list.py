"""``svmstream lab list``."""

from __future__ import annotations

import click

from qemu_svm.cli import output
from qemu_svm.cli.common import json_option


@click.command("list")
@json_option
def command(as_json: bool) -> None:  # noqa: FBT001
    """Show what is in the cache, with exact versions, and which boxes are up."""
    from qemu_svm.lab.inventory import inventory

    output.show(inventory(), as_json=as_json)
