"""The host's end of the line to the agent: channels over one byte stream.

Runs in an asyncio loop.  See :mod:`qemu_svm.lab.box.inside.frames` for the frames.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from qemu_svm.errors import LabError
from qemu_svm.lab.box.inside import frames

#: Called with kind and payload of each frame of a channel; with kind 0 when the line is dead.
Handler = Callable[[int, bytes], None]
LOST = 0


class Link:
    """Frames to and from the agent.

    :param reader, writer: the byte stream.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._handlers: dict[int, Handler] = {}
        self._next = 1
        self.hello: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.lost = asyncio.Event()
        self.reason: str | None = None
        self.heard = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._receive())

    def attach(self, handler: Handler) -> int:
        """Take a fresh channel number; its frames go to the handler.

        :raises LabError: the line is dead.
        """
        if self.lost.is_set():
            raise LabError("the box is gone")
        number = self._next
        self._next += 1
        self._handlers[number] = handler
        return number

    def detach(self, number: int) -> None:
        """Forget a channel; frames that still come for it are dropped."""
        self._handlers.pop(number, None)

    def send(self, frame: bytes) -> None:
        """Send a frame; the windows of the channels bound what can pile up."""
        if not self.lost.is_set():
            self._writer.write(frame)

    async def close(self) -> None:
        """End the line."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _receive(self) -> None:
        cutter = frames.Reader()
        loop = asyncio.get_running_loop()
        try:
            while data := await self._reader.read(1 << 18):
                self.heard = loop.time()
                for number, kind, payload in cutter.feed(data):
                    if kind == frames.HELLO and not self.hello.done():
                        self.hello.set_result(frames.value(payload))
                    elif kind == frames.GONE:
                        self.reason = str(frames.value(payload).get("error"))
                    elif number in self._handlers:
                        self._handlers[number](kind, payload)
        except (OSError, frames.FrameError):
            pass  # a broken line is a lost line
        finally:
            self.lost.set()
            if not self.hello.done():
                self.hello.set_exception(ConnectionError())
                self.hello.exception()  # seen, whether somebody waits for it or not
            for handler in list(self._handlers.values()):
                handler(LOST, b"")
            self._handlers.clear()


class Channel:
    """One command or connection inside the box.

    :raises LabError: from every method, once the line is dead.
    """

    def __init__(self, link: Link, wish: dict[str, Any]) -> None:
        self._link = link
        self._held = 0
        self._frames: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self._room = frames.WINDOW
        self._more = asyncio.Event()
        self._dead = False
        opening = frames.document(0, frames.OPEN, wish)
        if len(opening) > frames.CHUNK:
            raise LabError(
                f"a command of {len(opening)} bytes; {frames.CHUNK} are possible",
                hint="pass it in a file of the share, or by standard input",
            )
        self._number = link.attach(self._on_frame)
        link.send(frames.document(self._number, frames.OPEN, wish))

    def _on_frame(self, kind: int, payload: bytes) -> None:
        if kind == frames.ROOM:
            self._room += frames.number(payload)
            self._more.set()
            return
        if kind in (frames.DATA, frames.ERRORS):
            self._held += len(payload)
            if self._held > frames.WINDOW:
                raise frames.FrameError("more data than was granted")
        if kind in (LOST, frames.EXIT, frames.REFUSED):
            self._dead = True
            self._more.set()
            self._link.detach(self._number)
        self._frames.put_nowait((kind, payload))

    async def read(self) -> tuple[int, bytes]:
        """Return kind and payload of the next frame: DATA, ERRORS, EXIT, REFUSED or LOST."""
        kind, payload = await self._frames.get()
        if kind in (frames.DATA, frames.ERRORS):
            self._held -= len(payload)
            if not self._dead:
                self._link.send(frames.count(self._number, frames.ROOM, len(payload)))
        return kind, payload

    async def write(self, data: bytes) -> bool:
        """Send bytes, as fast as the other side takes them; False if it is not there any more."""
        view = memoryview(data)
        while view:
            while self._room <= 0 and not self._dead:
                self._more.clear()
                await self._more.wait()
            if self._dead:
                return False
            part = view[: min(self._room, frames.CHUNK)]
            self._room -= len(part)
            self._link.send(frames.frame(self._number, frames.DATA, bytes(part)))
            view = view[len(part) :]
        return not self._dead

    def end(self) -> None:
        """Say that no more data comes."""
        self._send(frames.frame(self._number, frames.END))

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._send(frames.count(self._number, frames.SIGNAL, number))

    def resize(self, rows: int, columns: int) -> None:
        """Tell a terminal its size."""
        size = {"rows": rows, "columns": columns}
        self._send(frames.document(self._number, frames.RESIZE, size))

    def close(self) -> None:
        """Forget the channel; what runs in it is killed."""
        self._send(frames.frame(self._number, frames.CLOSE))
        self._dead = True
        self._link.detach(self._number)

    def _send(self, frame: bytes) -> None:
        if not self._dead:
            self._link.send(frame)
