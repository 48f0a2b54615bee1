"""Which box a verb means: one that is up, or a fresh one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from qemu_svm.cli.lab.common import box_arguments, progress

if TYPE_CHECKING:
    from qemu_svm.lab.box.session import BoxSession

RULE = """\b
Which box: the one called --name; with any option of a box, a fresh one;
else the one that is up; if none is, a fresh one."""


@contextmanager
def session(name: str | None, options: dict[str, Any]) -> Iterator[BoxSession]:
    """Enter the box that is meant.

    :raises click.UsageError: a name and options of a fresh box.
    """
    from qemu_svm.lab import Box
    from qemu_svm.lab.box.named import Attached, find, running

    end_on_signals()
    arguments = box_arguments(options)
    if name is not None and arguments:
        raise click.UsageError("--name means a box that is up; its options are chosen already")
    if name is not None or (not arguments and running()):
        with Attached(find(name)) as attached:
            yield attached
        return
    with ExitStack() as stack:
        with progress() as show:
            box = stack.enter_context(Box(**arguments, progress=show))
        yield box


def end_on_signals() -> None:
    """SIGTERM and SIGHUP as Ctrl-C: the box is taken down, a terminal is put back."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
