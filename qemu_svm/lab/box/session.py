"""What can be done in a box, whoever started it: commands, sockets, the console.

The face is synchronous; an asyncio loop in a thread of its own does the work, so
several threads may use one session at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu_svm.errors import LabError
from qemu_svm.lab.box import console
from qemu_svm.lab.box.calls import call
from qemu_svm.lab.box.command import Command, Done
from qemu_svm.lab.box.inside import frames
from qemu_svm.lab.box.life import Folder
from qemu_svm.lab.box.link import LOST, Channel, Link

_T = TypeVar("_T")


class Session:
    """A line to the agent of a box, with what goes over it.  Use it with ``with``.

    Subclasses say in :meth:`_start` where the line comes from.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._servers: list[asyncio.Server] = []
        #: Exact versions: of the packages of ``kernel``, ``qemu`` and ``seabios`` inside,
        #: and of the ``emulator``.
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
        """The folder on the host that is ``/share`` inside.

        It is for files: QEMU's 9p server cannot make UNIX sockets; those go to ``/run``.
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
        """Run a command as root inside and wait for its end.

        :param timeout: seconds; then it is killed.
        :raises LabError: it cannot be started, the time is up, or the box has died.
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
        sink: Callable[[int, bytes], None] | None = None,
    ) -> Command:
        """Start a command as root inside.

        :param stdin: it has an input; see :meth:`Command.send`.
        :param tty: rows and columns: give it a terminal.
        :param sink: called with 1 or 2 and bytes of its output as they come, instead of
            their being kept.
        """
        wish = {"argv": list(argv), "stdin": stdin, "cwd": cwd, "env": env, "tty": tty}
        return self._call(Command.open(self, self._link, wish, sink))

    def forward(self, inside: str) -> Path:
        """Make a UNIX socket on the host that leads to a UNIX socket inside.

        Any number of connections may be made; each one is a connection inside.  Where nothing
        listens inside, a connection is closed at once.

        :param inside: its path inside the box.
        :returns: the path of the socket on the host.
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

    async def death(self) -> LabError:
        """Return the error that says why the box is not there (any more)."""
        return LabError(self._link.reason or "the box is gone")

    # For subclasses

    def _start(self) -> None:
        raise NotImplementedError

    def _start_loop(self) -> None:
        self._folder = Folder()
        self._stack.callback(self._folder.remove)
        self.loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self.loop.run_forever, name="box", daemon=True)
        thread.start()
        self._stack.callback(self._end_loop, thread)
        self._stack.callback(lambda: self._call(self._stop()))

    def _end_loop(self, thread: threading.Thread) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        thread.join()
        self.loop.close()

    def _use(self, link: Link, share: Path, console_file: Path) -> None:
        self._link = link
        self._share = share
        self._console = console_file

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        return call(self.loop, work)

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
                await _join(Channel(self._link, {"connect": inside}), reader, writer)
            writer.close()

        self._servers.append(await asyncio.start_unix_server(accept, path))
        return path


async def _join(
    channel: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    # Bytes both ways; each direction ends on its own.
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
