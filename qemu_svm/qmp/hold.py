"""Captures of a stopped guest that leave its run state unchanged.

A migration that completes leaves the guest in ``postmigrate``: its disks are
closed, and QEMU does not migrate it again before it has run.  With a return
path QEMU waits at the very end for the receiver's acknowledgement.  Everything
has been sent by then, and cancelling the migration at that moment restores the
guest's previous run state.

Before 9.0 QEMU enters ``postmigrate`` nevertheless, and before 10.0 the disks
may stay closed.  The two commands with which the sender opens the return path
are addressed to the receiver, which is this process: they are left out of the
file, which could not be loaded from a pipe otherwise.

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
from qemu_svm.qmp import timeouts
from qemu_svm.qmp.answers import Migration, Version
from qemu_svm.qmp.client import Client
from qemu_svm.qmp.receive import Receiver
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream

SINCE = Version(10, 0)
"""First QEMU in which this preserves the run state and keeps the disks open."""

CAPABILITY = "return-path"

OPENING = struct.pack(">BHH", 8, 1, 0) + struct.pack(">BHHI", 8, 2, 4, 1)
"""The commands OPEN_RETURN_PATH and PING 1."""

_SHUT = struct.pack(">HHI", 1, 4, 0)  # MIG_RP_MSG_SHUT, without an error
_POLL_SECONDS = 0.005


class Hold:
    """Detects the end of a stream whose sender waits for an acknowledgement.

    :param path: the file that the stream is written to.
    """

    def __init__(self, client: Client, receiver: Receiver, path: str) -> None:
        self._client = client
        self._receiver = receiver
        self._path = path
        self._seen = -1
        self._since = 0.0
        self._given_up = False

    async def completed(self, migration: Migration) -> Migration | None:
        """Cancel the migration if everything has arrived; return it as completed, else None.

        A stream that does not look complete after :data:`timeouts.HOLD` seconds is
        acknowledged, and the migration completes in the ordinary way.

        :raises CommandRefused: QEMU refused to cancel.
        :raises QmpError: the connection was lost.
        """
        now = time.monotonic()
        received = self._receiver.received
        if received != self._seen:
            self._seen, self._since = received, now
        quiet = now - self._since
        if migration.remaining != 0 or self._given_up or quiet < timeouts.SILENCE:
            return None
        if not self._complete():
            if quiet > timeouts.HOLD:
                self._given_up = True
                self._receiver.answer(_SHUT)
            return None
        await self._client.execute("migrate_cancel")
        while (await self._client.migration()).active:
            await asyncio.sleep(_POLL_SECONDS)
        return replace(migration, status="completed")

    def _complete(self) -> bool:
        with open_source(self._path) as source, suppress(StreamError):
            return read_stream(source).complete
        return False
