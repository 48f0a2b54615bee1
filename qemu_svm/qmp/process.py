"""A QEMU started by this process, and ended on every way out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Self

from qemu_svm.errors import EnvironmentFault, QmpError, Refused, StreamRefused
from qemu_svm.qmp import timeouts
from qemu_svm.qmp.client import Client

_KEPT_LINES = 200
_INCOMING = ("-incoming", "--incoming")
_DISPLAYS = frozenset({"display", "nographic", "vnc", "spice", "curses", "sdl", "gtk"})


class Process:
    """A QEMU with ``-incoming defer`` and a QMP socket.

    Made by :meth:`start`; :meth:`end` must be called, unless it was detached.
    :attr:`messages` has the last lines that it wrote to standard error.
    """

    def __init__(self, popen: subprocess.Popen[bytes], socket: str, folder: str | None) -> None:
        self.socket = socket
        self.messages: deque[str] = deque(maxlen=_KEPT_LINES)
        self._popen = popen
        self._folder = folder
        self._detached = False
        self._on_line: Callable[[str], None] | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @classmethod
    def start(
        cls,
        binary: str,
        arguments: Sequence[str],
        *,
        socket: str | None = None,
        paused: bool = True,
        attached: bool = False,
    ) -> Self:
        """Start a QEMU that waits for a stream.

        :param socket: path of its QMP socket; None for one in a private directory.
        :param paused: with ``-S``: the guest is not resumed, even if it ran when saved.
        :param attached: it shares our standard input and output.  Else it has no display,
            unless ``arguments`` have one: QEMU would offer it to the network by VNC.
        :raises Refused: ``arguments`` contain ``-incoming``.
        :raises EnvironmentFault: there is no such program, or it cannot be executed.
        """
        if any(word in _INCOMING for word in arguments):
            raise Refused("-incoming is set by svmstream: leave it out")
        program = shutil.which(binary)
        if program is None:
            raise EnvironmentFault(
                f"{binary}: no such program", hint="apt-get install qemu-system-x86"
            )
        folder = None
        if socket is None:
            try:
                folder = tempfile.mkdtemp(prefix="svmstream-")
            except OSError as error:
                raise EnvironmentFault(f"cannot make a directory: {error.strerror}") from error
            socket = f"{folder}/qmp"
        quoted = socket.replace(",", ",,")
        shown = attached or any(_display(word) for word in arguments)
        command = [
            *(program, *arguments, *(() if shown else ("-display", "none"))),
            *("-incoming", "defer"),
            *("-qmp", f"unix:{quoted},server=on,wait=off", *(["-S"] if paused else [])),
        ]
        end = None if attached else subprocess.DEVNULL
        try:
            popen = subprocess.Popen(
                command,
                stdin=end,
                stdout=end,
                stderr=subprocess.PIPE,
                start_new_session=not attached,
            )
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in an argument
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) else None
            raise EnvironmentFault(f"{binary}: {reason or error}") from error
        return cls(popen, socket, folder)

    async def connect(self) -> Client:
        """Return a connected client.

        :raises Refused: QEMU exited instead; the message quotes its standard error.
        :raises QmpError: no greeting within :data:`timeouts.START` seconds.
        """
        client = Client(f"unix:{self.socket}")
        end = asyncio.get_running_loop().time() + timeouts.START
        while True:
            try:
                await client.open()
            except QmpError:
                if self._popen.poll() is not None:
                    self._reader.join(1)
                    reason = "; ".join(self.messages) or f"status {self._popen.returncode}"
                    raise Refused(f"QEMU did not start: {reason}") from None
                if asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(0.02)
            else:
                return client

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        """Connect as by :meth:`connect`, and disconnect; refusals quote QEMU's standard error."""
        client = await self.connect()
        try:
            yield client
        except StreamRefused as error:
            raise await self.explained(error) from error
        finally:
            await client.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    async def wait(self) -> int:
        """Wait until it ends by itself; return its exit status."""
        while self._popen.poll() is None:
            await asyncio.sleep(0.1)
        return self._popen.returncode

    async def explained(self, error: StreamRefused) -> StreamRefused:
        """Return the error with this QEMU's standard error as its reason."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self.wait()
                await asyncio.to_thread(self._reader.join, 0.5)
        lines = list(self.messages)
        if error.reason and not any(error.reason in line for line in lines):
            lines.append(error.reason)
        return StreamRefused(error.what, reason="\n".join(lines), hint=error.hint)

    def listen(self, on_line: Callable[[str], None]) -> None:
        """Call ``on_line``, in a thread, with every further line of its standard error."""
        self._on_line = on_line

    def end(self) -> None:
        """End it, unless it was detached; never fails, and may be called again."""
        if self._detached:
            return
        self._on_line = None  # its message that a signal ended it is of no interest
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(timeouts.QUIT)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        self._reader.join(1)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def detach(self) -> None:
        """Let it continue to run, with its socket, after this process ends."""
        self._detached = True

    def _read(self) -> None:
        assert self._popen.stderr is not None
        fd, rest = self._popen.stderr.fileno(), b""
        with self._popen.stderr:
            while data := os.read(fd, 1 << 16):
                *lines, rest = (rest + data)[-(1 << 16) :].split(b"\n")
                for line in lines:
                    self._take_line(line)
        if rest:
            self._take_line(rest)

    def _take_line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        self.messages.append(text)
        if self._on_line is not None:
            self._on_line(text)


def _display(argument: str) -> bool:
    return argument.startswith("-") and argument.lstrip("-") in _DISPLAYS


@contextlib.asynccontextmanager
async def incoming(
    address: str | None, binary: str | None, arguments: Sequence[str] = (), *, timeout: float
) -> AsyncIterator[Client]:
    """Connect to a QEMU that waits for a stream, or start one that is ended afterwards.

    :param address: QMP socket of a running QEMU; None to start ``binary``.
    :param timeout: seconds that a running QEMU may take for an answer.
    """
    if address is not None:
        async with Client.connect(address, timeout=timeout) as client:
            yield client
        return
    assert binary is not None
    process = Process.start(binary, arguments)
    try:
        async with process.connected() as client:
            yield client
    finally:
        process.end()
