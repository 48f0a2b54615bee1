"""Use of a box, whichever process started it: commands, sockets, the console.

The interface is synchronous; an asyncio loop in its own thread does the work, so
several threads may use one session at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu_svm.errors import LabError
from qemu_svm.lab.box import console
from qemu_svm.lab.box.calls import call
from qemu_svm.lab.box.command import Command, Done, Sink
from qemu_svm.lab.box.inside import frames
from qemu_svm.lab.box.life import Folder
from qemu_svm.lab.box.link import LOST, Link, LinkChannel
from qemu_svm.lab.host import host_faults

_T = TypeVar("_T")


class BoxSession:
    """A connection to the agent of a box.  Use it with ``with``.

    :attr:`versions` has the exact versions of the packages of ``kernel``, ``qemu`` and
    ``seabios`` inside, and of the ``emulator``.

    Subclasses connect to the agent in :meth:`_start`.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._servers: list[asyncio.Server] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def share(self) -> Path:
        """The directory on the host that is ``/share`` inside.

        It is for files: QEMU's 9p server cannot create UNIX sockets; those belong in ``/run``.
        """
        return self._share

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        stdin: bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
    ) -> Done:
        """Run a command as root inside, wait for its end, and return its result.

        :param timeout: seconds, after which it is killed.
        :raises LabError: it cannot be started, did not end in time, or the box has died.
        """
        command = self.start(argv, stdin=stdin is not None, cwd=cwd, env=env)
        try:
            if stdin is not None:
                command.send(stdin)
                command.end()
            return command.wait(timeout)
        except BaseException:
            command.kill()
            raise

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        tty: tuple[int, int] | None = None,
        sink: Sink | None = None,
    ) -> Command:
        """Start a command as root inside.

        :param stdin: it has an input; see :meth:`Command.send`.
        :param tty: rows and columns of a terminal; None for no terminal.
        :param sink: is given its output as it arrives; None to keep the output.
        :raises LabError: the command is too long, or the box has died.
        """
        request = {"argv": list(argv), "stdin": stdin, "cwd": cwd, "env": env, "tty": tty}
        return self._call(self._command(request, sink))

    async def _command(self, request: dict[str, Any], sink: Sink | None) -> Command:
        if self._link.lost.is_set():
            raise await self.cause_of_death()
        channel = LinkChannel(self._link, request)
        return Command(channel, request["argv"], sink, self.cause_of_death)

    def forward(self, inside: str) -> Path:
        """Create a UNIX socket on the host that is forwarded to a UNIX socket inside.

        Any number of connections may be made; each one is a connection inside.  If nothing
        listens inside, a connection is closed at once.

        :param inside: path of the socket inside the box.
        :returns: the path of the socket on the host.
        :raises LabError: the socket cannot be created.
        """
        return self._call(self._forward(inside))

    def console(self) -> str:
        """Return the kernel's log so far."""
        try:
            return self._console.read_text(errors="replace")
        except OSError:
            return ""

    def oops(self) -> str | None:
        """Return the first oops, BUG, panic or stall of the kernel inside, or None."""
        return console.first_trouble(self.console())

    async def cause_of_death(self) -> LabError:
        """Return the error that reports why the box has died."""
        if self._link.violation is not None:
            return LabError(f"the box violates the protocol: {self._link.violation}")
        return LabError(self._link.reason or "the connection to the box is lost")

    # For subclasses

    def _start(self) -> None:
        raise NotImplementedError

    def _start_loop(self) -> None:
        self._folder = Folder()
        self._stack.callback(self._folder.remove)
        self._loop = loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="box", daemon=True)
        thread.start()

        def end_loop() -> None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

        self._stack.callback(end_loop)
        self._stack.callback(lambda: self._call(self._stop()))

    def _use(self, link: Link, share: Path, console_file: Path) -> None:
        self._link = link
        self._share = share
        self._console = console_file

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._loop is None:
            work.close()
            raise LabError("the box was not started", hint="use it with a with statement")
        return call(self._loop, work)

    async def _stop(self) -> None:
        for server in self._servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, inside: str) -> Path:
        path = self._folder.path / f"to{len(self._servers)}"

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(LabError, OSError):
                await _join(LinkChannel(self._link, {"connect": inside}), reader, writer)
            writer.close()

        with host_faults("create a socket"):
            self._servers.append(await asyncio.start_unix_server(accept, path))
        return path


async def _join(
    channel: LinkChannel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    # Copy bytes both ways; each direction ends by itself.
    async def inwards() -> None:
        while data := await reader.read(frames.CHUNK):
            if not await channel.write(data):
                return
        channel.end()

    task = asyncio.create_task(inwards())
    try:
        while True:
            kind, data = await channel.read()
            if kind in (LOST, frames.EXIT, frames.REFUSED):
                return
            if kind == frames.DATA:
                writer.write(data)
                await writer.drain()
            elif kind == frames.END:
                writer.write_eof()
    finally:
        channel.close()
        task.cancel()
