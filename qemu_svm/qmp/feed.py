"""The sending end of a restore: sources whose bytes go into QEMU's sockets.

Each connection has a thread of its own: QEMU takes pages when it likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

from qemu_svm.errors import SourceError
from qemu_svm.limits import MIB
from qemu_svm.source.base import Source


class Feeder:
    """Connections that are fed.

    :attr:`sent` counts the bytes that QEMU's sockets have taken.
    """

    def __init__(self) -> None:
        self.error: SourceError | None = None
        self.sent = 0
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._closed = False

    def add(self, connection: socket.socket, source: Source) -> None:
        """Start to feed a connection, which is then owned."""
        thread = threading.Thread(target=self._feed, args=(connection, source), daemon=True)
        self._sockets.append(connection)
        self._threads.append(thread)
        thread.start()

    async def close(self) -> None:
        """End every connection; never fails."""
        self._closed = True
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        for one in self._sockets:
            one.close()

    def _feed(self, connection: socket.socket, source: Source) -> None:
        try:
            offset = 0
            while not self._closed and (data := source.read_at(offset, MIB)):
                connection.sendall(data)
                offset += len(data)
                with self._lock:
                    self.sent += len(data)
        except SourceError as error:
            self.error = error
        except OSError:
            return  # QEMU has hung up; it will say why
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
