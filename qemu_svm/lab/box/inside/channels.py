"""The agent's channels: commands, and connections to sockets inside the box.

Standard library, Python 3.9.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import struct
import subprocess
import termios
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any, Protocol

from qemu_svm.lab.box.inside import frames

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"


class Carrier(Protocol):
    """What a channel needs of the agent."""

    @property
    def channels(self) -> MutableMapping[int, AgentChannel]:
        """The open channels by number."""
        ...

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call ``call`` with the events of a descriptor; 0 events to stop."""

    def close(self, fd: int) -> None:
        """Stop watching a descriptor and close it."""

    def send(self, data: bytes) -> None:
        """Queue frames for the host."""


class AgentChannel:
    """Bytes in, bytes out: the common part of commands and connections."""

    pid = 0

    def __init__(self, agent: Carrier, number: int) -> None:
        self.agent = agent
        self.number = number
        self.room = frames.WINDOW
        self.sources: dict[int, int] = {}
        self.sink = -1
        self._pending: deque[bytes] = deque()
        self._ended = False

    def on_frame(self, kind: int, payload: bytes) -> None:
        """Handle a frame from the host."""
        if kind == frames.DATA:
            self._pending.append(payload)
            self._write()
        elif kind == frames.END:
            self._ended = True
            self._write()
        elif kind == frames.ROOM:
            self.room += frames.number(payload)
            self.listen()
        elif kind == frames.CLOSE:
            self.close()

    def on_exit(self, status: int) -> None:
        """The process of this channel has ended."""

    def listen(self) -> None:
        """Read from the sources while the host has room for it."""
        events = selectors.EVENT_READ if self.room > 0 else 0
        for fd, kind in self.sources.items():
            self.agent.watch(fd, events, self._reader(fd, kind))

    def _reader(self, fd: int, kind: int) -> Callable[[int], None]:
        def ready(_events: int) -> None:
            if fd in self.sources:  # the number may belong to another file by now
                self.read(fd, kind)

        return ready

    def read(self, fd: int, kind: int) -> bool:
        """Send what a source has; return False at its end or if it has nothing now."""
        try:
            data = os.read(fd, min(self.room, frames.CHUNK))
        except BlockingIOError:
            return False
        except OSError:  # a terminal whose last process has ended
            data = b""
        if data:
            self.room -= len(data)
            self.agent.send(frames.frame(self.number, kind, data))
            if self.room <= 0:
                self.listen()
            return True
        self.source_ended(fd)
        return False

    def source_ended(self, fd: int) -> None:
        """Stop reading a source."""
        del self.sources[fd]
        self.agent.close(fd)

    def _write(self) -> None:
        if self.sink < 0:
            self._discard()
            return
        while self._pending:
            data = self._pending.popleft()
            try:
                sent = os.write(self.sink, data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.sink_failed()
                return
            self._grant(sent)
            if sent < len(data):
                self._pending.appendleft(data[sent:])
                break
        if not self._pending and self._ended:
            self.end_sink()
            return
        events = selectors.EVENT_WRITE if self._pending else 0
        self.agent.watch(self.sink, events, lambda _events: self._write())

    def _grant(self, size: int) -> None:
        if size:
            self.agent.send(frames.count(self.number, frames.ROOM, size))

    def _discard(self) -> None:
        # There is no reader any more; the host must not wait for room.
        self._grant(sum(map(len, self._pending)))
        self._pending.clear()

    def sink_failed(self) -> None:
        """Close the sink, which cannot be written any more."""
        fd, self.sink = self.sink, -1
        self._discard()
        self.agent.close(fd)

    def end_sink(self) -> None:
        """Close the sink: the host has no more data."""
        self.sink_failed()

    def close(self) -> None:
        """Close everything and remove the channel."""
        for fd in list(self.sources):
            self.source_ended(fd)
        if self.sink >= 0:
            self.sink_failed()
        self.agent.channels.pop(self.number, None)


class SocketConnection(AgentChannel):
    """A connection to a UNIX socket inside the box; each direction ends by itself."""

    def __init__(self, agent: Carrier, number: int, path: str) -> None:
        super().__init__(agent, number)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
            made.connect(path)
            os.set_blocking(made.fileno(), False)
            self.sink = os.dup(made.fileno())
            self.sources[made.detach()] = frames.DATA
        self.listen()

    def source_ended(self, fd: int) -> None:
        """Pass on the end of the data from inside."""
        super().source_ended(fd)
        self.agent.send(frames.frame(self.number, frames.END))
        self._settle()

    def sink_failed(self) -> None:
        """Pass on the end of the host's data, or that there is no reader any more."""
        if self.sink >= 0:
            with socket.socket(fileno=os.dup(self.sink)) as same, contextlib.suppress(OSError):
                same.shutdown(socket.SHUT_WR)
            super().sink_failed()
        self._settle()

    def _settle(self) -> None:
        if not self.sources and self.sink < 0 and self.number in self.agent.channels:
            del self.agent.channels[self.number]
            self.agent.send(frames.document(self.number, frames.EXIT, {}))


class Process(AgentChannel):
    """A command on pipes for standard input, output and errors, or on a terminal."""

    def __init__(self, agent: Carrier, number: int, request: dict[str, Any]) -> None:
        super().__init__(agent, number)
        self.tty = request.get("tty") is not None
        self._status: int | None = None
        environment = {"PATH": PATH, "HOME": "/root", "TERM": "linux", "LC_ALL": "C"}
        environment.update(request.get("env") or {})
        start = self._on_terminal if self.tty else self._on_pipes
        process = start(request, environment)
        self.pid = process.pid
        process.returncode = 0  # the agent reaps all processes; keep Popen from trying
        self.listen()

    def _on_pipes(self, request: dict[str, Any], environment: dict[str, str]) -> Any:
        process = subprocess.Popen(
            request["argv"], cwd=request.get("cwd") or "/root", env=environment,
            start_new_session=True,
            stdin=subprocess.PIPE if request.get("stdin") else subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        self._add_source(process.stdout.fileno(), frames.DATA)
        self._add_source(process.stderr.fileno(), frames.ERRORS)
        process.stdout.close()
        process.stderr.close()
        if process.stdin:
            self.sink = os.dup(process.stdin.fileno())
            os.set_blocking(self.sink, False)
            process.stdin.close()
        return process

    def _add_source(self, fd: int, kind: int) -> None:
        copy = os.dup(fd)
        os.set_blocking(copy, False)
        self.sources[copy] = kind

    def _on_terminal(self, request: dict[str, Any], environment: dict[str, str]) -> Any:
        ours, theirs = os.openpty()
        try:
            self._resize(ours, *request["tty"])
            process = subprocess.Popen(
                request["argv"], cwd=request.get("cwd") or "/root", env=environment,
                start_new_session=True, stdin=theirs, stdout=theirs, stderr=theirs,
                preexec_fn=_take_terminal,  # noqa: PLW1509  there are no threads
            )  # fmt: skip
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(ours, False)
        self.sources[ours] = frames.DATA
        self.sink = os.dup(ours)
        return process

    def _resize(self, fd: int, rows: int, columns: int) -> None:
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def on_frame(self, kind: int, payload: bytes) -> None:
        if kind == frames.SIGNAL:
            self.signal(frames.number(payload))
        elif kind == frames.RESIZE:
            size = frames.value(payload)
            if self.tty and self.sink >= 0:
                self._resize(self.sink, size["rows"], size["columns"])
        else:
            super().on_frame(kind, payload)
            self._settle()

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def end_sink(self) -> None:
        if not self.tty:  # a terminal has no end of input: Ctrl-D is data
            super().end_sink()

    def on_exit(self, status: int) -> None:
        self._status = os.waitstatus_to_exitcode(status)
        self._settle()

    def read(self, fd: int, kind: int) -> bool:
        more = super().read(fd, kind)
        if not more:
            self._settle()
        return more

    def _settle(self) -> None:
        # Once the command has ended: send what its pipes still hold, then its status.  A
        # process that it left running may keep them open for ever; that is not waited for.
        if self._status is None or self.number not in self.agent.channels:
            return
        for fd, kind in list(self.sources.items()):
            while fd in self.sources and self.room > 0 and AgentChannel.read(self, fd, kind):
                pass
        if self.sources and self.room <= 0:
            return  # continues when the host has read
        status, self._status = self._status, None
        super().close()
        self.agent.send(frames.document(self.number, frames.EXIT, {"status": status}))

    def close(self) -> None:
        self.signal(signal.SIGKILL)
        super().close()


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
