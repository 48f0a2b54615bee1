"""A QEMU that we start, and end on every way out."""

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
from collections.abc import Callable, Sequence
from typing import Self

from qemu_svm.errors import EnvironmentFault, QmpError, Refused, StreamRefused
from qemu_svm.qmp.client import Client

START_SECONDS = 60.0
_QUIT_SECONDS = 5.0
_KEPT_LINES = 200

_OURS = ("-incoming", "--incoming")


class Process:
    """A QEMU with ``-incoming defer`` and a QMP socket.

    Use :meth:`start`; :meth:`end` must follow, unless it is to live on.

    :param said: the last lines that it wrote to standard error.
    """

    def __init__(self, popen: subprocess.Popen[bytes], socket: str, folder: str | None) -> None:
        self.socket = socket
        self.said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._popen = popen
        self._folder = folder
        self._free = False
        self._listen: Callable[[str], None] | None = None
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

        :param socket: path of its QMP socket; a private one without it.
        :param paused: with ``-S``: the guest stays stopped whatever it was.
        :param attached: it has our standard input and output.
        :raises Refused: ``arguments`` have an ``-incoming`` of their own.
        :raises EnvironmentFault: no such program.
        """
        if any(word in _OURS for word in arguments):
            raise Refused("-incoming is given by svmstream itself: leave it out")
        program = shutil.which(binary)
        if program is None:
            raise EnvironmentFault(
                f"{binary}: no such program", hint="apt-get install qemu-system-x86"
            )
        folder = None
        if socket is None:
            folder = tempfile.mkdtemp(prefix="svmstream-")
            socket = f"{folder}/qmp"
        quoted = socket.replace(",", ",,")
        command = [
            *(program, *arguments, "-incoming", "defer"),
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
        except OSError as error:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise EnvironmentFault(f"{binary}: {error.strerror}") from error
        return cls(popen, socket, folder)

    async def connect(self) -> Client:
        """Return a connected client.

        :raises Refused: QEMU ended instead; its words are in the message.
        :raises QmpError: no QMP after a minute.
        """
        client = Client(f"unix:{self.socket}")
        end = asyncio.get_running_loop().time() + START_SECONDS
        while True:
            try:
                await client.open()
            except QmpError:
                if self._popen.poll() is not None:
                    self._reader.join(1)
                    words = "; ".join(self.said) or f"status {self._popen.returncode}"
                    raise Refused(f"QEMU did not start: {words}") from None
                if asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(0.02)
            else:
                return client

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    async def wait(self) -> int:
        """Wait until it ends by itself; its status."""
        while self._popen.poll() is None:
            await asyncio.sleep(0.1)
        return self._popen.returncode

    async def explained(self, error: StreamRefused) -> StreamRefused:
        """Return the error with what this QEMU has said as its reason."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self.wait()
                await asyncio.to_thread(self._reader.join, 0.5)
        said = list(self.said)
        if error.reason and not any(error.reason in line for line in said):
            said.append(error.reason)
        return StreamRefused(error.what, reason="\n".join(said), hint=error.hint)

    def listen(self, heard: Callable[[str], None]) -> None:
        """Call ``heard`` with every line that it says from now on (in a thread)."""
        self._listen = heard

    def end(self) -> None:
        """End it, unless it was let go; never fails, and may be called again."""
        if self._free:
            return
        self._listen = None  # that it is ended by a signal is no news
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(_QUIT_SECONDS)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        self._reader.join(1)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def let_go(self) -> None:
        """Let it live on, with its socket."""
        self._free = True

    def _read(self) -> None:
        assert self._popen.stderr is not None
        fd, rest = self._popen.stderr.fileno(), b""
        with self._popen.stderr:
            while data := os.read(fd, 1 << 16):
                *lines, rest = (rest + data)[-(1 << 16) :].split(b"\n")
                for line in lines:
                    self._line(line)
        if rest:
            self._line(rest)

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace")
        self.said.append(text)
        if self._listen is not None:
            self._listen(text)
