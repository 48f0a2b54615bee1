"""What the verbs that talk to a QEMU have in common."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from qemu_svm.qmp.answers import Migration

_EVERY = 0.2  # seconds between two words of progress
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

qmp_option = click.option(
    "--qmp", "address", metavar="SOCKET", required=True,
    help="QMP socket: unix:PATH, a path, or HOST:PORT.",
)  # fmt: skip

timeout_option = click.option(
    "--timeout", default=30.0, show_default=True, type=click.FloatRange(min=0.1),
    metavar="SECONDS", help="How long QEMU may take for an answer.",
)  # fmt: skip


def size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    """Read bytes with k, M, G or T behind the number; an option's callback."""
    if value is None:
        return None
    text = value.lower().removesuffix("ib").removesuffix("b")
    unit = text[-1:] if text[-1:] in _UNITS else ""
    try:
        found = float(text.removesuffix(unit)) * _UNITS[unit]
    except ValueError:
        found = 0
    if not 1 <= found < 1 << 62:
        raise click.BadParameter(f"'{value}' is no size such as 64M")
    return int(found)


def progress() -> Callable[[Migration], None]:
    """What to call while a migration runs: a line on a terminal, else nothing."""
    if not sys.stderr.isatty():
        return lambda _migration: None
    import shutil

    from qemu_svm.render.text.migration import progress_line

    last = 0.0

    def show(migration: Migration) -> None:
        nonlocal last
        now = time.monotonic()
        if not migration.active:
            click.echo("\r\x1b[K", nl=False, err=True)
        elif now - last > _EVERY:
            last = now
            width = shutil.get_terminal_size().columns - 1
            click.echo(f"\r\x1b[K{progress_line(migration)[:width]}", nl=False, err=True)

    return show
