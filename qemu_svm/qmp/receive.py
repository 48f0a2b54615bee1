"""The receiving end of a migration: sockets whose bytes go into files.

QEMU is passed one end of a socket pair, or connects to a socket on which this
process listens (multifd needs a connection for each channel).  A socket is
better than a file: if this process dies, QEMU notices at once, fails the
migration and resumes the guest; and QEMU 11 does not accept a plain file as
``fd:``.

Each connection has its own thread, so that a slow disk does not delay the QMP
connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable

from qemu_svm.errors import QmpError, SvmStreamError
from qemu_svm.limits import KIB, MIB

_BUFFER = MIB
_HEAD = 64  # as long as the first packet of a multifd channel
_LONG_HEAD = 4 * KIB  # header, machine type and capabilities are shorter
_BACKLOG = 256
_PATIENCE_MS = 100
_POLL_SECONDS = 0.01

Route = Callable[[bytes], int]
"""Returns the descriptor to write a connection to, given its first bytes."""


class Receiver:
    """Connections that are written to files.

    :attr:`ended` is set when all connections have ended, or one has failed;
    :attr:`error` is the first failure; :attr:`received` counts bytes.

    :param route: called in a thread, once for each connection.
    :param without: bytes to be left out, once, near the start of a connection.
    """

    def __init__(self, route: Route, without: bytes = b"") -> None:
        self.received = 0
        self.ended = asyncio.Event()
        self.error: OSError | SvmStreamError | None = None
        self._head_and_last = b"", b""
        self._route = route
        self._without = without
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._open = 0
        self._closed = False

    def add(self, connection: socket.socket) -> None:
        """Start to receive from a connection, which is then owned."""
        thread = threading.Thread(target=self._receive, args=(connection,), daemon=True)
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._sockets.append(connection)
            self._open += 1
            thread.start()
            self._threads.append(thread)

    def answer(self, data: bytes) -> None:
        """Send bytes to QEMU over every connection."""
        for one in list(self._sockets):
            with contextlib.suppress(OSError):
                one.sendall(data)

    def unlike_a_stream(self) -> str | None:
        """Return why what went through the only connection is no whole stream, or None.

        Only the first bytes and the last one are known: that of a description or of EOF.
        """
        head, last = self._head_and_last
        if not self.received:
            return "it sent nothing"
        if head != b"QEVM" or last not in (b"\0", b"}"):
            return f"the {self.received} bytes that it sent do not end as a stream does"
        return None

    async def arrived(self, wanted: int, within: float) -> bool:
        """Wait until ``wanted`` connections were made; return False after ``within`` seconds.

        QEMU may have sent everything and exited before a connection is accepted.
        """
        end = time.monotonic() + within
        while len(self._threads) < wanted:
            if time.monotonic() > end:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return True

    async def drain(self) -> None:
        """Wait until every connection has ended and everything is written."""
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            await asyncio.to_thread(thread.join)

    async def close(self) -> None:
        """End every connection; never fails."""
        with self._lock:
            self._closed = True
            sockets = list(self._sockets)
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        await self.drain()
        for one in sockets:
            one.close()

    def _receive(self, connection: socket.socket) -> None:
        try:
            self._copy(connection)
        except (OSError, SvmStreamError) as error:
            with self._lock:
                self.error = self.error or error
            self._set_ended()
            self._discard(connection)
        finally:
            with self._lock:
                self._open -= 1
                last = not self._open
            if last:
                self._set_ended()

    def _copy(self, connection: socket.socket) -> None:
        buffer = memoryview(bytearray(_BUFFER))
        size = self._head(connection, buffer)
        if not size:
            return
        target = self._route(bytes(buffer[:_HEAD]))
        while size:
            self.received += size
            self._head_and_last = (
                self._head_and_last[0] or bytes(buffer[:4]), bytes(buffer[size - 1 : size])
            )  # fmt: skip
            self._write(target, buffer[:size])
            try:
                size = connection.recv_into(buffer)
            except ConnectionResetError:
                return  # as an end: whether everything arrived, the migration's status shows

    def _discard(self, connection: socket.socket) -> None:
        # Read on until the migration is cancelled: a broken multifd channel can crash QEMU
        # (7.2, ``yank_unregister_instance``).
        buffer = bytearray(_BUFFER)
        with contextlib.suppress(OSError):
            while connection.recv_into(buffer):
                pass

    def _write(self, target: int, data: memoryview) -> None:
        if stat.S_ISREG(os.fstat(target).st_mode):
            at = 0
            while at < len(data):
                at += os.write(target, data[at:])
            return
        # A pipe whose reader is slow must not block close().
        ready = select.poll()
        ready.register(target, select.POLLOUT)
        at = 0
        while at < len(data):
            if ready.poll(_PATIENCE_MS):
                at += os.write(target, data[at : at + select.PIPE_BUF])
            elif self._closed:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))

    def _head(self, connection: socket.socket, buffer: memoryview) -> int:
        # Read enough for route() to recognise the connection, and drop ``without`` from it.
        size, enough = 0, _LONG_HEAD if self._without else _HEAD
        while size < enough and (got := connection.recv_into(buffer[size:])):
            size += got
            at = bytes(buffer[:enough]).find(self._without) if self._without else -1
            if at >= 0:
                rest = bytes(buffer[at + len(self._without) : size])
                buffer[at : at + len(rest)] = rest
                return at + len(rest)
        return size

    def _set_ended(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self.ended.set)


def pair(receiver: Receiver) -> socket.socket:
    """Make a socket pair and receive from one end; return the other, for QEMU.

    :raises QmpError: the host has no more file descriptors.
    """
    try:
        ours, theirs = socket.socketpair()
    except OSError as error:
        raise QmpError(f"cannot make a pair of sockets: {error.strerror}") from error
    with contextlib.suppress(OSError):
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 512 * KIB)
    receiver.add(ours)
    return theirs


class Listener:
    """A socket that QEMU connects to, for several channels or for QMP over TCP.

    :param host: the only host that may connect, over TCP; None for a UNIX socket
        in a directory that nobody else can enter.
    :raises QmpError: the host is unknown, or no socket can be made.
    """

    def __init__(self, receiver: Receiver, host: str | None = None) -> None:
        self._receiver = receiver
        self._peer: str | None = None
        self._stack = contextlib.ExitStack()
        try:
            self._socket, self.uri = self._private() if host is None else self._for(host)
            self._socket.listen(_BACKLOG)
        except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host
            self._stack.close()
            reason = error.strerror if isinstance(error, OSError) else None
            raise QmpError(f"cannot listen for QEMU: {reason or error}") from error
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes up accept()
        self._thread.join()
        self._stack.close()

    def _private(self) -> tuple[socket.socket, str]:
        folder = tempfile.mkdtemp(prefix="svmstream-")
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        path = os.path.join(folder, "migrate")
        made = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        made.bind(path)
        return made, f"unix:{path}"

    def _for(self, host: str) -> tuple[socket.socket, str]:
        family, _, _, _, address = socket.getaddrinfo(host, 1, type=socket.SOCK_STREAM)[0]
        self._peer = str(address[0])
        made = self._stack.enter_context(socket.socket(family))
        own = _own_address(family, self._peer)
        made.bind((own, 0))
        port = made.getsockname()[1]
        return made, f"tcp:[{own}]:{port}" if ":" in own else f"tcp:{own}:{port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, address = self._socket.accept()
                if self._peer is None or address[0] == self._peer:
                    self._receiver.add(connection)
                else:
                    connection.close()


def _own_address(family: int, peer: str) -> str:
    # The address of ours from which the peer is reached; nothing is sent.
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 1))
        return str(probe.getsockname()[0])
