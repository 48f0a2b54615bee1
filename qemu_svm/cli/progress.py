"""Progress on standard error: on a terminal, and only there except for long steps."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from qemu_svm.cli.options import quiet
from qemu_svm.lab.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from qemu_svm.qmp.answers import Migration
    from qemu_svm.recorder.record import State

_INTERVAL = 0.2  # seconds between two updates of the line


class _Line:
    # A line of a terminal that is overwritten, and cleared in the end.
    def __init__(self) -> None:
        self._last = time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last <= _INTERVAL:
            return False
        self._last = now
        return True

    def show(self, text: str = "") -> None:
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)


def share(total: int, of_what: str) -> Callable[[int], None]:
    """Return what to call with the amount that is done: shows it in percent of a total.

    :param of_what: words after the percentage.
    """
    if not sys.stderr.isatty() or not total:
        return lambda _done: None
    line = _Line()

    def show(done: int) -> None:
        if done >= total:
            line.show()
        elif line.due():
            line.show(f"{100 * done // total:3} % {of_what}")

    return show


def rate() -> Callable[[int, int], None]:
    """Return what to call with how many are done, and of how many: shows rate and time left."""
    if not sys.stderr.isatty() or quiet():
        return lambda _done, _total: None
    line, start = _Line(), time.monotonic()
    before: int | None = None

    def show(done: int, total: int) -> None:
        nonlocal before
        if before is None:
            before = done
        if line.due():
            speed = (done - before) / max(time.monotonic() - start, 1e-3)
            left = f", {(total - done) / speed:.0f} s left" if speed else ""
            line.show(f"{done} of {total}, {speed:.0f} a second{left}")

    return show


def migration() -> Callable[[Migration], None]:
    """Return what to call with the answers of ``query-migrate`` while a migration runs."""
    if not sys.stderr.isatty():
        return lambda _migration: None
    import shutil

    from qemu_svm.render.text.migration import progress_line

    line = _Line()

    def show(migration: Migration) -> None:
        if not migration.active:
            line.show()
        elif line.due():
            line.show(progress_line(migration)[: shutil.get_terminal_size().columns - 1])

    return show


def recording() -> Callable[[State], None]:
    """Return what to call with the state of a recording, several times a second."""
    if not sys.stderr.isatty() or quiet():
        return lambda _state: None
    from qemu_svm.recorder.alone import counts

    line = _Line()

    def show(state: State) -> None:
        if line.due():
            line.show(f"{counts(state)}  (Ctrl-C ends it)")

    return show


def clear() -> None:
    """Clear the line of the progress."""
    if sys.stderr.isatty():
        _Line().show()


def note(words: str) -> None:
    """Print what is to be read in spite of the line of the progress."""
    clear()
    click.echo(words, err=True)


@contextmanager
def steps() -> Iterator[Progress]:
    """Show the steps of the lab: a bar on a terminal, else a line for each long step."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Display

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(20))
    with Display(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _Bar(bars)


class _Lines(Progress):
    # Only steps that have parts, each once.
    def __init__(self) -> None:
        self._last = ""

    def step(self, what: str, done: int = 0, total: int = 0) -> None:  # noqa: ARG002
        if total and what != self._last:
            self.note(what)
            self._last = what

    def note(self, what: str) -> None:
        click.echo(what, err=True)


class _Bar(Progress):
    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task = bars.add_task("", total=None)

    def step(self, what: str, done: int = 0, total: int = 0) -> None:
        self._bars.update(self._task, description=what, completed=done, total=total or None)

    def note(self, what: str) -> None:
        self._bars.console.print(what, markup=False, highlight=False)
