"""``svmstream lab clean``."""

from __future__ import annotations

import click

from qemu_svm.cli import progress
from qemu_svm.lab.suites.catalogue import SUITES

_NAMES = tuple(suite.name for suite in SUITES)


@click.command("clean")
@click.argument("names", metavar="[SUITE]...", nargs=-1, type=click.Choice(_NAMES))
@click.option("--all", "everything", is_flag=True, help="All suites.")
def command(*, names: tuple[str, ...], everything: bool) -> None:
    """Remove suites from the cache, with everything made from them.

    Waits for boxes that use them. Nothing else in the cache directory is touched.
    """
    from qemu_svm.lab.suites import cache

    if not names and not everything:
        raise click.UsageError(f"name a suite ({', '.join(_NAMES)}), or give --all")
    chosen = tuple(suite for suite in SUITES if everything or suite.name in names)
    with progress.steps() as shown:
        gone = cache.clean(chosen, shown)
    for path in gone:
        click.echo(f"removed {path}", err=True)
