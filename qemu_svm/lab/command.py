"""A command that runs inside a box."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from qemu_svm.errors import LabError
from qemu_svm.lab.inside import frames
from qemu_svm.lab.link import LOST, Channel, Link

if TYPE_CHECKING:
    from qemu_svm.lab.box import Box

_T = TypeVar("_T")

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
    """A command inside a box; made by :meth:`qemu_svm.lab.box.Box.start`."""

    def __init__(
        self,
        box: Box,
        loop: asyncio.AbstractEventLoop,
        channel: Channel,
        argv: list[str],
        sink: Callable[[int, bytes], None] | None,
    ) -> None:
        self._box = box
        self._loop = loop
        self._channel = channel
        self._argv = argv
        self._sink = sink
        self._kept = {1: bytearray(), 2: bytearray()}
        self._end = loop.create_task(self._collect())

    @classmethod
    async def open(
        cls,
        box: Box,
        loop: asyncio.AbstractEventLoop,
        link: Link,
        wish: dict[str, Any],
        sink: Callable[[int, bytes], None] | None,
    ) -> Command:
        """Start it; in the loop's thread."""
        if link.lost.is_set():
            raise box.death()
        return cls(box, loop, Channel(link, wish), wish["argv"], sink)

    def wait(self, timeout: float | None = None) -> Done:
        """Wait for its end.

        :param timeout: seconds; then it is killed and a LabError says so.
        """
        return self._call(self._wait(timeout))

    def running(self) -> bool:
        """Tell whether it has not ended yet."""
        return not self._end.done()

    def send(self, data: bytes) -> None:
        """Write to its standard input; waits while it does not read."""
        self._call(self._channel.write(data))

    def end(self) -> None:
        """Close its standard input."""
        self._loop.call_soon_threadsafe(self._channel.end)

    def resize(self, rows: int, columns: int) -> None:
        """Tell its terminal a new size."""
        self._loop.call_soon_threadsafe(self._channel.resize, rows, columns)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to it and all that it started."""
        self._loop.call_soon_threadsafe(self._channel.signal, number)

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _wait(self, timeout: float | None) -> Done:
        done, _rest = await asyncio.wait((self._end,), timeout=timeout)
        if done:
            return self._end.result()
        self._channel.signal(signal.SIGKILL)
        done, _rest = await asyncio.wait((self._end,), timeout=_KILL_LIMIT)
        name = " ".join(self._argv)
        if not done:
            raise LabError(f"the box hangs: `{name}` could not be killed after {timeout:g} s")
        self._end.exception()
        raise LabError(f"`{name}` did not end within {timeout:g} s and was killed")

    async def _collect(self) -> Done:
        while True:
            kind, data = await self._channel.read()
            if kind in (frames.DATA, frames.ERRORS):
                await self._take(1 if kind == frames.DATA else 2, data)
            elif kind == frames.EXIT:
                status = int(frames.value(data).get("status", 0))
                return Done(status, bytes(self._kept[1]), bytes(self._kept[2]))
            elif kind == frames.REFUSED:
                why = frames.value(data).get("error")
                raise LabError(f"`{' '.join(self._argv)}` cannot be started in the box: {why}")
            elif kind == LOST:
                await asyncio.sleep(0.2)  # the emulator's end is seen a moment later
                raise self._box.death()

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
