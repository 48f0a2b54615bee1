"""A command that runs inside a box."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qemu_svm.errors import LabError
from qemu_svm.lab.box.calls import call
from qemu_svm.lab.box.inside import frames
from qemu_svm.lab.box.link import LOST, Channel, Link

if TYPE_CHECKING:
    from qemu_svm.lab.box.session import Session

#: Bytes of output that are kept; more belongs into a file of the share.
OUTPUT_LIMIT = 256 << 20
#: Seconds that a killed command may take to be gone; then the box hangs.
_KILL_LIMIT = 30.0


@dataclass(frozen=True)
class Done:
    """What became of a command.

    :param returncode: its exit status; minus the signal's number if one ended it.
    """

    returncode: int
    stdout: bytes
    stderr: bytes


class Command:
    """A command inside a box; made by :meth:`qemu_svm.lab.box.session.Session.start`."""

    def __init__(
        self,
        box: Session,
        channel: Channel,
        argv: list[str],
        sink: Callable[[int, bytes], None] | None,
    ) -> None:
        self._box = box
        self._loop = box.loop
        self._channel = channel
        self._argv = argv
        self._sink = sink
        self._kept = {1: bytearray(), 2: bytearray()}
        self._end = box.loop.create_task(self._collect())
        self._end.add_done_callback(lambda end: end.cancelled() or end.exception())

    @classmethod
    async def open(
        cls,
        box: Session,
        link: Link,
        wish: dict[str, Any],
        sink: Callable[[int, bytes], None] | None,
    ) -> Command:
        """Start it; in the loop's thread."""
        if link.lost.is_set():
            raise await box.death()
        return cls(box, Channel(link, wish), wish["argv"], sink)

    def wait(self, timeout: float | None = None) -> Done:
        """Wait for its end.

        :param timeout: seconds; then it is killed and a LabError says so.
        """
        return call(self._loop, self._wait(timeout))

    def running(self) -> bool:
        """Tell whether it has not ended yet."""
        return not self._end.done()

    def send(self, data: bytes) -> None:
        """Write to its standard input; waits while it does not read."""
        call(self._loop, self._channel.write(data))

    def end(self) -> None:
        """Close its standard input."""
        self._loop.call_soon_threadsafe(self._channel.end)

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal a new size."""
        self._loop.call_soon_threadsafe(self._channel.resize, rows, columns)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it and all that it started."""
        self._loop.call_soon_threadsafe(self._channel.signal, number)

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
                if not isinstance(status, int):
                    raise LabError("the box does not keep to the protocol")
                return Done(status, bytes(self._kept[1]), bytes(self._kept[2]))
            elif kind == frames.REFUSED:
                why = _answer(data).get("error")
                raise LabError(f"`{' '.join(self._argv)}` cannot be started in the box: {why}")
            elif kind == LOST:
                raise await self._box.death()

    async def _take(self, stream: int, data: bytes) -> None:
        if self._sink is not None:
            await asyncio.to_thread(self._sink, stream, data)
            return
        kept = self._kept[stream]
        if len(kept) + len(data) > OUTPUT_LIMIT:
            self._channel.close()
            raise LabError(
                f"`{' '.join(self._argv)}` writes more than {OUTPUT_LIMIT >> 20} MiB",
                hint="let it write into a file of the share",
            )
        kept += data


def _answer(data: bytes) -> dict[str, Any]:
    try:
        return frames.value(data)
    except frames.FrameError as error:
        raise LabError(f"the box does not keep to the protocol: {error}") from error
