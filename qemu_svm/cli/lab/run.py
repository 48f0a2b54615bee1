"""``svmstream lab run``."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Any

import click

from qemu_svm.cli.lab.boxes import session
from qemu_svm.cli.lab.options import WHICH_BOX, box_options, name_option, record_option
from qemu_svm.cli.verbs import verb

_CHUNK = 1 << 16


@verb(
    "run",
    "svmstream lab run --kernel 7.2 -- uname -r",
    "svmstream lab run -i -- sh -s < script.sh",
    "svmstream lab run --record vmm.rec -- qemu-system-x86_64 -accel kvm ...",
    epilog=WHICH_BOX,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@name_option
@box_options
@click.option("-i", "--stdin", "interactive", is_flag=True, help="Pass on standard input.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
              help="Kill the command after that.")  # fmt: skip
@record_option
@click.argument("argv", metavar="[--] COMMAND...", nargs=-1, required=True)
def command(
    *,
    name: str | None,
    interactive: bool,
    timeout: float | None,
    record: str | None,
    argv: tuple[str, ...],
    **box: Any,
) -> int:
    """Run a command in a box, as root.

    Its output is passed on as it is written. The exit status is the command's (128
    plus the number of the signal that ended it), or 4 if the box failed.
    """
    from qemu_svm.lab.recording import recorded, refuse_existing

    if record is not None:
        refuse_existing(record)
    with session(name, box) as host, ExitStack() as stack:
        before = () if record is None else stack.enter_context(recorded(host, record))
        running = host.start((*before, *argv), stdin=interactive, sink=_write)
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
