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

from qemu_svm.cli.lab.common import box_options, name_option
from qemu_svm.cli.lab.target import RULE, session

if TYPE_CHECKING:
    from qemu_svm.lab import Command


@click.command("shell", epilog=RULE)
@name_option
@box_options
def command(name: str | None, **options: Any) -> int:
    """A shell in a box, as root, on a terminal; Ctrl-D or exit leaves it."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("a shell needs a terminal; `lab run` does not")
    with session(name, options) as box:
        environment = {"TERM": os.environ.get("TERM", "linux"), "PS1": r"\u@\h:\w\$ "}
        running = box.start(
            ["/bin/bash", "--norc"], tty=_size(), env=environment, sink=_write, cwd="/share"
        )
        with _raw(), _woken() as wake:
            _pump(running, wake)
        status = running.wait().returncode
    return status if status >= 0 else 128 - status


def _pump(running: Command, wake: int) -> None:
    # Keys in, until the shell ends; a signal about the window's size interrupts the wait.
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
def _raw() -> Iterator[None]:
    # Keys go through as they are, Ctrl-C too; the terminal is put back whatever happens.
    keys = sys.stdin.fileno()
    before = termios.tcgetattr(keys)
    try:
        tty.setraw(keys)
        yield
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)


@contextmanager
def _woken() -> Iterator[int]:
    # A pipe that can be read once the window has another size.
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
