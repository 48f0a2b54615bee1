"""``svmstream lab shell``."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from qemu_svm.cli.lab.boxes import session
from qemu_svm.cli.lab.options import WHICH_BOX, box_options, name_option
from qemu_svm.cli.verbs import verb

if TYPE_CHECKING:
    from qemu_svm.lab import Command


@verb(
    "shell",
    "svmstream lab shell --kernel 6.1 --share .",
    epilog=WHICH_BOX,
)
@name_option
@box_options
def command(*, name: str | None, **box: Any) -> int:
    """Run a shell in a box, as root, on a terminal; Ctrl-D or exit leaves it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("a shell needs a terminal; `lab run` does not")
    with session(name, box) as host:
        environment = {"TERM": os.environ.get("TERM", "linux"), "PS1": r"\u@\h:\w\$ "}
        running = host.start(
            ["/bin/bash", "--norc"], tty=_size(), env=environment, sink=_write, cwd="/share"
        )
        with _raw_terminal(), _resizes() as wake:
            _pump(running, wake)
        status = running.wait().returncode
    return status if status >= 0 else 128 - status


def _pump(running: Command, wake: int) -> None:
    # Pass keys on until the shell ends; a byte in ``wake`` means that the window was resized.
    keys = sys.stdin.fileno()
    while running.running():
        ready, _out, _errors = select.select((keys, wake), (), (), 0.2)
        if wake in ready:
            os.read(wake, 512)
            running.resize(*_size())
        if keys in ready:
            data = os.read(keys, 4096)
            if not data:
                running.kill(signal.SIGHUP)
                return
            running.send(data)


def _write(_stream: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]


def _size() -> tuple[int, int]:
    packed = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    rows, columns, _x, _y = struct.unpack("4H", packed)
    return rows or 24, columns or 80


@contextmanager
def _raw_terminal() -> Iterator[None]:
    # Keys are passed on unchanged, Ctrl-C too; the terminal's mode is restored in any case.
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    try:
        tty.setraw(keys)
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)


@contextmanager
def _resizes() -> Iterator[int]:
    # A pipe that becomes readable when the window is resized.
    ours, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def changed(_number: int, _frame: object) -> None:
        os.write(theirs, b"\0")

    before = signal.signal(signal.SIGWINCH, changed)
    try:
        yield ours
    finally:
        signal.signal(signal.SIGWINCH, before)
        os.close(ours)
        os.close(theirs)
