"""The host's end of the connection to the agent: channels over one byte stream.

Runs in an asyncio loop.  See :mod:`qemu_svm.lab.box.inside.frames` for the frames.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from qemu_svm.errors import LabError
from qemu_svm.lab.box.inside import frames

LOST = -1
"""The kind with which handlers are called when the connection is lost; no frame has it."""

Handler = Callable[[int, bytes], None]
"""Called with the kind and the payload of each frame of a channel."""


class Link:
    """Frames to and from the agent.

    :attr:`lost` is set when the connection is lost, :attr:`reason` is then the cause if
    the owner of the box reported one, :attr:`violation` what the other side did that is no
    protocol; :attr:`last_heard` is the loop's time of the last data.

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
        self.violation: str | None = None
        self.last_heard = asyncio.get_running_loop().time()
        self._task = asyncio.create_task(self._receive())

    def attach(self, handler: Handler) -> int:
        """Return a new channel number, whose frames go to the handler.

        :raises LabError: the connection is lost.
        """
        if self.lost.is_set():
            raise LabError("the connection to the box is lost")
        number = self._next
        self._next += 1
        self._handlers[number] = handler
        return number

    def detach(self, number: int) -> None:
        """Remove a channel; frames that still arrive for it are dropped."""
        self._handlers.pop(number, None)

    def send(self, frame: bytes) -> None:
        """Send a frame; the windows of the channels limit how much is buffered."""
        if not self.lost.is_set():
            self._writer.write(frame)

    async def close(self) -> None:
        """Close the connection."""
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
                self.last_heard = loop.time()
                for number, kind, payload in cutter.feed(data):
                    if kind == frames.HELLO and not self.hello.done():
                        self.hello.set_result(frames.value(payload))
                    elif kind == frames.GONE:
                        self.reason = str(frames.value(payload).get("error"))
                    elif number in self._handlers:
                        self._handlers[number](kind, payload)
        except OSError:
            pass  # a broken connection is a lost one
        except frames.FrameError as error:
            self.violation = str(error)
        finally:
            self.lost.set()
            if not self.hello.done():
                self.hello.set_exception(ConnectionError())
                self.hello.exception()  # marks it as retrieved
            for handler in list(self._handlers.values()):
                handler(LOST, b"")
            self._handlers.clear()


class LinkChannel:
    """The host's end of one command or connection inside the box.

    :param request: the JSON of :data:`frames.OPEN`.
    :raises LabError: the request is too long, or the connection to the box is lost.
    """

    def __init__(self, link: Link, request: dict[str, Any]) -> None:
        self._link = link
        self._held = 0
        self._ended = False
        self._frames: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self._room = frames.WINDOW
        self._more = asyncio.Event()
        self._dead = False
        size = len(frames.document(0, frames.OPEN, request))
        if size > frames.CHUNK:
            raise LabError(
                f"the command is too long: {size} bytes, the limit is {frames.CHUNK}",
                hint="pass it in a file of the share, or by standard input",
            )
        self._number = link.attach(self._on_frame)
        link.send(frames.document(self._number, frames.OPEN, request))

    def _on_frame(self, kind: int, payload: bytes) -> None:
        if kind == frames.ROOM:
            self._room += frames.number(payload)
            self._more.set()
            return
        if kind in (frames.DATA, frames.ERRORS):
            if not payload:
                return
            self._held += len(payload)
            if self._held > frames.WINDOW:
                raise frames.FrameError("more data than was granted")
        elif kind == frames.END:
            if self._ended:
                raise frames.FrameError("a second end of the data")
            self._ended = True
        elif kind in (LOST, frames.EXIT, frames.REFUSED):
            self._dead = True
            self._more.set()
            self._link.detach(self._number)
        else:
            raise frames.FrameError(f"a frame of kind {kind} for a channel")
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
        """Send bytes as the other side makes room; return False if the channel has ended."""
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
        """Signal the end of the data."""
        self._send(frames.frame(self._number, frames.END))

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._send(frames.count(self._number, frames.SIGNAL, number))

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of the command's terminal."""
        size = {"rows": rows, "columns": columns}
        self._send(frames.document(self._number, frames.RESIZE, size))

    def close(self) -> None:
        """Remove the channel; the command in it is killed."""
        self._send(frames.frame(self._number, frames.CLOSE))
        self._dead = True
        self._link.detach(self._number)

    def _send(self, frame: bytes) -> None:
        if not self._dead:
            self._link.send(frame)
