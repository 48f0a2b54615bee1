"""Commands that run inside a box."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from qemu_svm.errors import LabError
from qemu_svm.lab.box.calls import call
from qemu_svm.lab.box.inside import frames
from qemu_svm.lab.box.link import LOST, LinkChannel

OUTPUT_LIMIT = 256 << 20
"""Bytes of output that are kept in memory; more should go to a file of the share."""

_STATUSES = range(-64, 256)  # minus a signal's number, or what a process returned
_KILL_LIMIT = 30.0  # seconds from SIGKILL to the end; then the box hangs

Sink = Callable[[int, bytes], None]
"""Called with 1 or 2 (standard output, standard error) and the next bytes of it."""


@dataclass(frozen=True)
class Done:
    """The result of a command.

    :param returncode: exit status; minus the signal's number if a signal ended it.
    """

    returncode: int
    stdout: bytes
    stderr: bytes


class Command:
    """A command inside a box; made by :meth:`qemu_svm.lab.box.session.BoxSession.start`."""

    def __init__(
        self,
        channel: LinkChannel,
        argv: list[str],
        sink: Sink | None,
        cause_of_death: Callable[[], Awaitable[LabError]],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = channel
        self._argv = argv
        self._sink = sink
        self._cause_of_death = cause_of_death
        self._kept = {1: bytearray(), 2: bytearray()}
        self._end = self._loop.create_task(self._collect())
        self._end.add_done_callback(lambda end: end.cancelled() or end.exception())

    def wait(self, timeout: float | None = None) -> Done:
        """Wait for its end and return its result.

        :param timeout: seconds, after which it is killed.
        :raises LabError: it did not end in time, wrote more than :data:`OUTPUT_LIMIT`, could
            not be started, or the box has died.
        """
        return call(self._loop, self._wait(timeout))

    def running(self) -> bool:
        """Return whether it has not ended yet."""
        return not self._end.done()

    def send(self, data: bytes) -> None:
        """Write to its standard input; blocks while it does not read."""
        call(self._loop, self._channel.write(data))

    def end(self) -> None:
        """Close its standard input."""
        self._soon(self._channel.end)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal."""
        self._soon(self._channel.resize, rows, columns)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it and all processes that it started."""
        self._soon(self._channel.signal, number)

    def _soon(self, action: Callable[..., None], *arguments: int) -> None:
        if not self._loop.is_closed():  # with the box everything in it has ended
            self._loop.call_soon_threadsafe(action, *arguments)

    async def _wait(self, timeout: float | None) -> Done:
        done, _rest = await asyncio.wait((self._end,), timeout=timeout)
        if done:
            return self._end.result()
        self._channel.signal(signal.SIGKILL)
        done, _rest = await asyncio.wait((self._end,), timeout=_KILL_LIMIT)
        name = " ".join(self._argv)
        if not done:
            raise LabError(f"the box hangs: `{name}` could not be killed after {timeout:g} s")
        raise LabError(f"`{name}` did not end within {timeout:g} s and was killed")

    async def _collect(self) -> Done:
        while True:
            kind, data = await self._channel.read()
            if kind in (frames.DATA, frames.ERRORS):
                await self._take(1 if kind == frames.DATA else 2, data)
            elif kind == frames.EXIT:
                status = _answer(data).get("status")
                if type(status) is not int or status not in _STATUSES:
                    raise LabError("the box violates the protocol: EXIT without a status")
                return Done(status, bytes(self._kept[1]), bytes(self._kept[2]))
            elif kind == frames.REFUSED:
                why = _answer(data).get("error")
                raise LabError(f"`{' '.join(self._argv)}` cannot be started in the box: {why}")
            elif kind == LOST:
                raise await self._cause_of_death()

    async def _take(self, stream: int, data: bytes) -> None:
        if self._sink is not None:
            await asyncio.to_thread(self._sink, stream, data)
            return
        kept = self._kept[stream]
        if len(kept) + len(data) > OUTPUT_LIMIT:
            self._channel.close()
            raise LabError(
                f"`{' '.join(self._argv)}` writes more than {OUTPUT_LIMIT >> 20} MiB",
                hint="redirect it to a file of the share",
            )
        kept += data


def _answer(data: bytes) -> dict[str, Any]:
    try:
        return frames.value(data)
    except frames.FrameError as error:
        raise LabError(f"the box violates the protocol: {error}") from error
