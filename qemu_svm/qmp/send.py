"""The sending end of a restore: sources whose bytes go into QEMU's sockets.

Each connection has its own thread: QEMU reads them at its own pace.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading

from qemu_svm.errors import SvmStreamError
from qemu_svm.limits import MIB
from qemu_svm.source.base import Source


class Sender:
    """Connections into which sources are written.

    :attr:`sent` counts the bytes that QEMU's sockets have accepted; :attr:`error`
    is the first source that could not be read.
    """

    def __init__(self) -> None:
        self.error: SvmStreamError | None = None
        self.sent = 0
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self._closed = False

    def add(self, connection: socket.socket, source: Source) -> None:
        """Start to send over a connection, which is then owned."""
        thread = threading.Thread(target=self._send, args=(connection, source), daemon=True)
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

    def _send(self, connection: socket.socket, source: Source) -> None:
        try:
            offset = 0
            while not self._closed and (data := source.read_at(offset, MIB)):
                connection.sendall(data)
                offset += len(data)
                with self._lock:
                    self.sent += len(data)
        except SvmStreamError as error:
            self.error = self.error or error
        except OSError:
            return  # QEMU has closed it, and will report why
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
