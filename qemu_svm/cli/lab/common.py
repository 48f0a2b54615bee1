"""What the lab's verbs have in common: the options of a box, and progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from qemu_svm.lab.progress import Progress
from qemu_svm.lab.suites.catalogue import KERNELS, QEMUS

_Command = TypeVar("_Command", bound=Callable[..., Any])

mirror_option = click.option(
    "--mirror", metavar="URL", help="Debian mirror; by default the host's own, else deb.debian.org."
)
kernel_option = click.option(
    "--kernel", type=click.Choice(KERNELS), help="Kernel of the box.  [default: 6.1]"
)
qemu_option = click.option(
    "--qemu", type=click.Choice(QEMUS),
    help="QEMU inside, and its user land; by default of the kernel's suite.",
)  # fmt: skip
name_option = click.option("--name", metavar="NAME", help="Name of the box.")

_BOX_OPTIONS = (
    kernel_option,
    qemu_option,
    click.option("--npt", type=click.Choice(("on", "off")), help="Nested paging.  [default: on]"),
    click.option("--cpu", metavar="MODEL", help="CPU model of the box.  [default: EPYC]"),
    click.option("--smp", type=click.IntRange(1, 64), metavar="N", help="CPUs.  [default: 1]"),
    click.option(
        "--memory", type=click.IntRange(256), metavar="MIB", help="Memory.  [default: 2048]"
    ),
    click.option(
        "--emulator", type=click.Choice(QEMUS),
        help="Let this QEMU play the host; by default the one installed here.",
    ),
    click.option(
        "--share", metavar="DIR",
        type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
        help="Show this folder as /share inside.",
    ),
    mirror_option,
)  # fmt: skip


def box_options(function: _Command) -> _Command:
    """Add the options of a box; :func:`box_arguments` takes what they give."""
    for option in reversed(_BOX_OPTIONS):
        function = option(function)
    return function


def box_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Turn the options of a box into arguments for :class:`qemu_svm.lab.Box`; only those given."""
    given = {name: value for name, value in options.items() if value is not None}
    if "npt" in given:
        given["npt"] = given["npt"] == "on"
    return given


@contextmanager
def progress() -> Iterator[Progress]:
    """Show progress on standard error: a bar on a terminal, else a line for each long step."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20))
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Terminal(bars)


class _Lines(Progress):
    # Long steps, which have parts, once each.
    def __init__(self) -> None:
        self._last = ""

    def step(self, what: str, done: int = 0, total: int = 0) -> None:  # noqa: ARG002
        if total and what != self._last:
            self.note(what)
            self._last = what

    def note(self, what: str) -> None:
        click.echo(what, err=True)


class _Terminal(Progress):
    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._task = bars.add_task("", total=None)

    def step(self, what: str, done: int = 0, total: int = 0) -> None:
        self._bars.update(self._task, description=what, completed=done, total=total or None)

    def note(self, what: str) -> None:
        self._bars.console.print(what, markup=False, highlight=False)
