"""``svmstream lab clean``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from qemu_svm.cli import progress
from qemu_svm.cli.verbs import verb
from qemu_svm.lab.suites.catalogue import SUITES

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_SUITES = tuple(suite.name for suite in SUITES)


class _InCache(click.ParamType[str]):
    # A suite, or the name of a kernel in the cache.
    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in _names():
            self.fail(f"'{value}' is not in the cache; there are {', '.join(_names())}", param, ctx)
        return value

    def shell_complete(
        self, _ctx: click.Context, _param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in _names() if name.startswith(incomplete)]


@verb(
    "clean",
    "svmstream lab clean bullseye linux-6.12.105-1",
)
@click.argument("names", metavar="[NAME]...", nargs=-1, type=_InCache())
@click.option("--kernels", is_flag=True, help="All kernels that were fetched by their version.")
@click.option("--all", "everything", is_flag=True, help="All suites and kernels.")
def command(*, names: tuple[str, ...], kernels: bool, everything: bool) -> None:
    """Remove suites and kernels from the cache, with everything made from them.

    NAME is that of `lab list`. Waits for boxes that use them. Nothing else in the
    cache directory is touched.
    """
    from qemu_svm.lab.suites import cache

    if not names and not kernels and not everything:
        raise click.UsageError(f"name what to remove ({', '.join(_names())}), or give --all")
    chosen = dict.fromkeys(names)
    if everything:
        chosen |= dict.fromkeys(_SUITES)
        chosen |= dict.fromkeys(one.name for one in cache.workshops())
    if kernels or everything:
        chosen |= dict.fromkeys(built.name for built in cache.kernels())
    with progress.steps() as shown:
        gone = cache.clean([cache.Named(name) for name in chosen], shown)
    for path in gone:
        click.echo(f"removed {path}", err=True)


def _names() -> tuple[str, ...]:
    from qemu_svm.lab.suites import cache

    kernels = (built.name for built in cache.kernels())
    return (*_SUITES, *kernels, *(one.name for one in cache.workshops()))
