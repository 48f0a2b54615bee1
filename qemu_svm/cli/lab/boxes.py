"""The box that a verb uses: one that is up, or a new one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import click

from qemu_svm.cli import progress, signals
from qemu_svm.cli.lab.options import box_arguments, with_modules

if TYPE_CHECKING:
    from qemu_svm.lab.box.session import BoxSession


@contextmanager
def session(name: str | None, options: dict[str, Any]) -> Iterator[BoxSession]:
    """Enter the box that is meant.

    :raises click.UsageError: a name together with options of a new box.
    """
    from qemu_svm.lab import Box
    from qemu_svm.lab.box.named import Attached, find, running

    signals.interrupt_on_termination()
    arguments = box_arguments(options)
    if name is not None and arguments:
        raise click.UsageError("--name is for a box that is up, whose options cannot be changed")
    if name is not None or (not arguments and running()):
        with Attached(find(name)) as attached:
            yield attached
        return
    with ExitStack() as stack:
        with progress.steps() as shown:
            box = stack.enter_context(Box(**with_modules(arguments, shown), progress=shown))
        yield box
