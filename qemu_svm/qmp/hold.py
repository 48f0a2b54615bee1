"""Leaving a stopped guest exactly as it was.

A migration that ends well leaves the guest in ``postmigrate``: its disks are
closed, and QEMU does not migrate it again before it has run.  With a return
path QEMU waits at the very end for the receiver's word.  Everything has been
sent then, and a migration that is cancelled at that moment gives the guest its
old run state back.

Before 9.0 QEMU goes to ``postmigrate`` even so, and before 10.0 the disks may
stay closed.  The two commands with which
the sender opens the return path are for the receiver, which is us: they are
left out of the file, which could not be loaded from a pipe otherwise.

Source: QEMU ``migration/migration.c`` (``migration_completion``,
``migration_iteration_finish``), ``migration/savevm.c``; measured on 10.0 and 11.1.
"""

from __future__ import annotations

import asyncio
import struct
import time
from contextlib import suppress
from dataclasses import replace

from qemu_svm.errors import StreamError
from qemu_svm.qmp.answers import Migration, Version
from qemu_svm.qmp.client import Client
from qemu_svm.qmp.receive import Receiver
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream

SINCE = Version(10, 0)
"""First QEMU in which this keeps the run state and the disks open."""

CAPABILITY = "return-path"

OPENING = struct.pack(">BHH", 8, 1, 0) + struct.pack(">BHHI", 8, 2, 4, 1)
"""The commands OPEN_RETURN_PATH and PING 1."""

_SHUT_WELL = struct.pack(">HHI", 1, 4, 0)
_QUIET_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0
_POLL_SECONDS = 0.005


class Hold:
    """Waits for the end of a stream whose sender waits for us.

    :param path: where the stream is written to.
    """

    def __init__(self, client: Client, receiver: Receiver, path: str) -> None:
        self._client = client
        self._receiver = receiver
        self._path = path
        self._seen = -1
        self._since = 0.0
        self._given_up = False

    async def over(self, migration: Migration) -> Migration | None:
        """Return how it ended if everything has come; else None.

        A stream that does not look complete after a while is let go in the
        ordinary way.
        """
        now = time.monotonic()
        received = self._receiver.received
        if received != self._seen:
            self._seen, self._since = received, now
        quiet = now - self._since
        if migration.remaining != 0 or self._given_up or quiet < _QUIET_SECONDS:
            return None
        if not self._complete():
            if quiet > _PATIENCE_SECONDS:
                self._given_up = True
                self._receiver.answer(_SHUT_WELL)
            return None
        await self._client.execute("migrate_cancel")
        while (await self._client.migration()).active:
            await asyncio.sleep(_POLL_SECONDS)
        return replace(migration, status="completed")

    def _complete(self) -> bool:
        with open_source(self._path) as source, suppress(StreamError):
            return read_stream(source).complete
        return False
