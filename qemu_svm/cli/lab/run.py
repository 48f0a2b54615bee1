"""``svmstream lab run``."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from qemu_svm.cli.lab.common import box_options, name_option
from qemu_svm.cli.lab.target import RULE, session

_CHUNK = 1 << 16


@click.command(
    "run",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog=RULE,
)
@name_option
@box_options
@click.option("-i", "--stdin", "interactive", is_flag=True, help="Pass standard input on.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS")
@click.argument("argv", metavar="[--] COMMAND...", nargs=-1, required=True)
def command(
    name: str | None,
    interactive: bool,  # noqa: FBT001
    timeout: float | None,
    argv: tuple[str, ...],
    **options: Any,
) -> int:
    """Run a command in a box, as root.

    Its output is passed on as it comes; the exit status is the command's (128
    and the number of the signal that ended it), or 4 if the box failed.
    """
    with session(name, options) as box:
        running = box.start(argv, stdin=interactive, sink=_write)
        if interactive:
            from threading import Thread

            Thread(target=_feed, args=(running,), daemon=True).start()
        status = running.wait(timeout).returncode
    return status if status >= 0 else 128 - status


def _write(stream: int, data: bytes) -> None:
    # Straight to the descriptor: bytes, at once.
    view = memoryview(data)
    while view:
        view = view[os.write(stream, view) :]


def _feed(running: Any) -> None:
    while data := os.read(sys.stdin.fileno(), _CHUNK):
        running.send(data)
    running.end()
