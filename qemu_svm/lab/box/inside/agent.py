"""The first process inside the box: runs commands, connects to sockets.

Started by ``init`` as process 1; exchanges :mod:`frames` over a virtio-serial port.
When the host disconnects it ends the box.  Standard library, Python 3.9.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import signal
import subprocess
from collections import deque
from collections.abc import Callable
from typing import Any

from qemu_svm.lab.box.inside import frames
from qemu_svm.lab.box.inside.channels import AgentChannel, Process, SocketConnection

PORT = "box.agent"


def find_port(name: str) -> str:
    """Return the path of the virtio-serial port of this name."""
    top = "/sys/class/virtio-ports"
    for port in sorted(os.listdir(top)):
        with open(os.path.join(top, port, "name")) as file:
            if file.read().strip() == name:
                return os.path.join("/dev", port)
    raise SystemExit("box: no virtio-serial port " + name)


class Agent:
    """The event loop, the port and the channels."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.selector = selectors.DefaultSelector()
        self.channels: dict[int, AgentChannel] = {}
        self._reader = frames.Reader()
        self._out: deque[bytes] = deque()
        self._watched: dict[int, int] = {}
        os.set_blocking(port, False)
        self.watch(port, selectors.EVENT_READ, self._on_port)
        wake, woken = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(woken, False)
        signal.set_wakeup_fd(woken)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self.watch(wake, selectors.EVENT_READ, lambda _events: self._reap(wake))

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call ``call`` with the events of a descriptor; 0 events to stop."""
        before = self._watched.get(fd, 0)
        if before == events:
            return
        if not events:
            self.selector.unregister(fd)
            del self._watched[fd]
        elif before:
            self.selector.modify(fd, events, call)
            self._watched[fd] = events
        else:
            self.selector.register(fd, events, call)
            self._watched[fd] = events

    def close(self, fd: int) -> None:
        """Stop watching a descriptor and close it."""
        self.watch(fd, 0, lambda _events: None)
        os.close(fd)

    def send(self, data: bytes) -> None:
        """Queue frames for the host."""
        self._out.append(data)
        self._flush()

    def run(self) -> None:
        """Serve until the host disconnects."""
        while True:
            for key, events in self.selector.select():
                # An earlier call of this iteration may have closed it.
                if key.fd in self._watched:
                    key.data(events)

    def _on_port(self, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush()
        if events & selectors.EVENT_READ:
            try:
                data = os.read(self.port, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                power_off()
            for channel, kind, payload in self._reader.feed(data):
                self._on_frame(channel, kind, payload)

    def _flush(self) -> None:
        while self._out:
            data = self._out.popleft()
            try:
                sent = os.write(self.port, data[: 1 << 15])
            except BlockingIOError:
                sent = 0
            if sent < len(data):
                self._out.appendleft(data[sent:])
            if not sent:
                break
        more = selectors.EVENT_WRITE if self._out else 0
        self.watch(self.port, selectors.EVENT_READ | more, self._on_port)

    def _on_frame(self, number: int, kind: int, payload: bytes) -> None:
        if kind == frames.PING:
            self.send(frames.frame(number, frames.PONG, payload))
        elif kind == frames.OPEN:
            self._open(number, frames.value(payload))
        elif number in self.channels:
            self.channels[number].on_frame(kind, payload)

    def _open(self, number: int, request: dict[str, Any]) -> None:
        try:
            if "connect" in request:
                self.channels[number] = SocketConnection(self, number, request["connect"])
            else:
                self.channels[number] = Process(self, number, request)
        except OSError as error:
            self._refuse(number, error.strerror or str(error))
        except (ValueError, subprocess.SubprocessError) as error:
            self._refuse(number, str(error))

    def _refuse(self, number: int, why: str) -> None:
        self.send(frames.document(number, frames.REFUSED, {"error": why}))

    def _reap(self, wake: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(wake, 512):
                pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for channel in list(self.channels.values()):
                if channel.pid == pid:
                    channel.on_exit(status)


def power_off() -> None:
    """End the box at once."""
    with open("/proc/sysrq-trigger", "w") as trigger:
        trigger.write("b")
    os._exit(0)


def main() -> None:
    """Serve the port until the host disconnects."""
    port = os.open(find_port(PORT), os.O_RDWR | os.O_CLOEXEC)
    agent = Agent(port)
    hello = {"kvm": os.path.exists("/dev/kvm")}
    agent.send(frames.document(0, frames.HELLO, hello))
    try:
        agent.run()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENODEV):
            raise
    power_off()
