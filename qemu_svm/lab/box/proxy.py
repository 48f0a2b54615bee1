"""Use of one box by several processes: each connects to the process that owns the box.

A client's frame is forwarded to the agent under another channel number, and back.  The
windows are between agent and client; nothing is buffered here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from qemu_svm.errors import LabError
from qemu_svm.lab.box.inside import frames
from qemu_svm.lab.box.link import LOST, Link

# The windows keep what waits for a client far below this, unless a side violates the protocol.
_BUFFER_LIMIT = 64 << 20
_LAST = (LOST, frames.EXIT, frames.REFUSED)


class Proxy:
    """Accepts clients for a link.

    :param cause_of_death: returns the error that clients get when the box has died.
    """

    def __init__(self, link: Link, cause_of_death: Callable[[], Awaitable[LabError]]) -> None:
        self._link = link
        self._cause_of_death = cause_of_death

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it disconnects or the box dies."""
        numbers: dict[int, int] = {}
        serving = asyncio.create_task(self._serve(reader, writer, numbers))
        dead = asyncio.create_task(self._link.lost.wait())
        try:
            await asyncio.wait((serving, dead), return_when=asyncio.FIRST_COMPLETED)
            if dead.done():
                error = await self._cause_of_death()
                writer.write(frames.document(0, frames.GONE, {"error": error.what}))
        finally:
            serving.cancel()
            dead.cancel()
            for number in numbers.values():
                self._link.send(frames.frame(number, frames.CLOSE))
                self._link.detach(number)
            writer.close()

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, numbers: dict[int, int]
    ) -> None:
        cutter = frames.Reader()
        with contextlib.suppress(OSError, LabError, frames.FrameError):
            while data := await reader.read(1 << 18):
                for number, kind, payload in cutter.feed(data):
                    if kind == frames.OPEN:
                        numbers[number] = self._link.attach(_back(writer, number, numbers))
                    if number in numbers:
                        self._link.send(frames.frame(numbers[number], kind, payload))


def _back(
    writer: asyncio.StreamWriter, number: int, numbers: dict[int, int]
) -> Callable[[int, bytes], None]:
    def handle(kind: int, payload: bytes) -> None:
        if kind != LOST:
            writer.write(frames.frame(number, kind, payload))
            if writer.transport.get_write_buffer_size() > _BUFFER_LIMIT:
                writer.transport.abort()
        if kind in _LAST:
            numbers.pop(number, None)

    return handle
