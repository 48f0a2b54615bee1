"""Signals that end a recording, and a descriptor that they wake."""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Takes the signals that end a recording, and SIGCHLD, from :meth:`take` to :meth:`close`.

    :attr:`wake` becomes readable when one came; :attr:`came` has those that end it, in order.
    """

    def __init__(self) -> None:
        self.came: list[int] = []
        self.wake, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before: dict[int, Any] = {}
        self._wake_before = -1

    def take(self) -> None:
        """Begin to take them."""
        self._wake_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in (*ENDING, signal.SIGCHLD):
            before = signal.getsignal(number)
            # Who starts a command in the background may have it ignore SIGINT.
            if number == signal.SIGCHLD or before != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._take)

    def _take(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self.came.append(number)

    def drain(self) -> None:
        """Let :attr:`wake` wait again."""
        try:
            while os.read(self.wake, 512):
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Put back what was before."""
        for number, before in self._before.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(self._wake_before)
        os.close(self.wake)
        os.close(self._write)
