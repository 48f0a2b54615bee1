"""A command that waits until it is recorded."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Sequence

from qemu_svm.errors import EnvironmentFault

NOT_EXECUTABLE, NOT_FOUND = 126, 127
"""Exit statuses of a shell for a command that cannot be run."""


class CommandNotRun(EnvironmentFault):
    """The command cannot be run; :attr:`status` is what a shell would return."""

    rule = "command"

    def __init__(self, what: str, status: int) -> None:
        super().__init__(what)
        self.status = status


class Command:
    """A child that executes a command once :meth:`go` is called.

    :param prepare: is called in the child right before it executes.
    """

    def __init__(self, argv: Sequence[str], prepare: Callable[[], None] | None = None) -> None:
        held, self._go = os.pipe2(os.O_CLOEXEC)
        self._failed, failing = os.pipe2(os.O_CLOEXEC)
        self.name = argv[0]
        self.pid = os.fork()
        if not self.pid:
            _child(list(argv), held, self._go, failing, prepare)
        os.close(held)
        os.close(failing)

    def go(self) -> None:
        """Let it execute."""
        os.write(self._go, b".")
        os.close(self._go)
        self._go = -1

    def failure(self) -> CommandNotRun | None:
        """Return why it was not executed, once it has ended or executes; else None."""
        os.set_blocking(self._failed, False)
        try:
            said = os.read(self._failed, 64)
        except BlockingIOError:
            return None
        number = int(said) if said else 0
        if not number:
            return None
        status = NOT_FOUND if number == errno.ENOENT else NOT_EXECUTABLE
        return CommandNotRun(f"cannot run '{self.name}': {os.strerror(number)}", status)

    def close(self) -> None:
        """Release what is held of it; if it has not been let go, it ends."""
        for fd in (self._go, self._failed):
            if fd >= 0:
                os.close(fd)
        self._go = self._failed = -1


def _child(
    argv: list[str], held: int, go: int, failing: int, prepare: Callable[[], None] | None
) -> None:
    try:
        os.close(go)
        for name in ("SIGPIPE", "SIGXFSZ"):  # which Python ignores
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        if os.read(held, 1):
            if prepare is not None:
                prepare()
            os.execvp(argv[0], argv)
    except OSError as error:
        os.write(failing, str(error.errno).encode())
    except BaseException:  # noqa: BLE001 - nothing of the parent may run in the child
        os.write(failing, str(errno.EIO).encode())
    finally:
        os._exit(NOT_FOUND)
