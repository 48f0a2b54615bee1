"""What a capture changes in QEMU, and its way back on every way out.

Everything is noted *before* it is changed, because after a lost connection
nobody knows whether a command was carried out.  The way back runs to its end
whatever is cancelled meanwhile: the guest comes first.  If the connection was
lost it is made anew.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from qemu_svm.errors import CommandRefused, QmpError, SvmStreamError
from qemu_svm.qmp.answers import Migration, Status, Version
from qemu_svm.qmp.client import Client
from qemu_svm.qmp.finish import finish

RECONNECT_SECONDS = 10.0
"""How long to try to reach a QEMU whose connection was lost."""

_END_SECONDS = 30.0
_POLL_SECONDS = 0.02

_FIRST = "setup"
_LAST_PASS = "finish-migrate"
_PATIENCE_SECONDS = 2.0
_FRAGILE = ("mapped-ram", "multifd")  # together
_SLOW = 10_000  # bytes a second
_REST_SECONDS = 0.02
_SAFE_TO_CANCEL = Version(10, 0)

# Run states in which a guest stands that ran before, and that only we stopped.
_OURS = frozenset({"postmigrate", _LAST_PASS})


class Session:
    """A migration of ours, with everything that was before.

    :param before: the run state when we came.
    """

    def __init__(self, client: Client, before: Status) -> None:
        self.client = client
        self.before = before
        self.after = before
        self._capabilities: dict[str, bool] = {}
        self._parameters: dict[str, Any] = {}
        self._migrating = False
        self._stopped = False

    async def change(
        self, capabilities: Mapping[str, bool], parameters: Mapping[str, object]
    ) -> None:
        """Switch capabilities and set parameters, to be put back at the end."""
        self._capabilities = {name: not state for name, state in capabilities.items()}
        await self.client.set_capabilities(capabilities)
        await self._set(parameters)

    async def _set(self, parameters: Mapping[str, object]) -> None:
        old = await self.client.parameters()
        found = {name: old[name] for name in parameters if name in old}
        self._parameters = found | self._parameters  # what was noted first is what was there
        await self.client.set_parameters(parameters)

    async def stop(self) -> None:
        """Stop the guest, to be woken up at the end if it ran."""
        self._stopped = self.before.running
        await self.client.stop()

    async def migrate(self, uri: str) -> None:
        """Start the migration, to be cancelled at the end if it still runs.

        :raises CommandRefused: QEMU did not start it.
        """
        self._migrating = True
        try:
            await self.client.execute("migrate", {"uri": uri})
        except CommandRefused:
            self._migrating = False
            raise

    async def resume(self) -> None:
        """Let the guest run if it ran before, and note how it is left.

        A guest that QEMU let run by itself is told to run all the same: before
        10.0 a migration that is cancelled in its last moment leaves the disks
        closed, and QEMU aborts at the next write or migration; ``cont`` opens
        them (``bdrv_inactivate_recurse`` in QEMU's ``block.c``; seen on 7.2).
        """
        status = await self.client.status()
        ours = status.state in _OURS or (self._stopped and status.state == "paused")
        if (ours or status.running) and (self.before.running or self.before.state == "suspended"):
            await self.client.cont()
            status = await self.client.status()
        self._stopped = False
        self.after = status

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await finish(self._put_back())
        except SvmStreamError as fault:
            raise fault from error

    async def _put_back(self) -> None:
        end = time.monotonic() + RECONNECT_SECONDS
        try:
            while True:
                if not self.client.connected:
                    await self.client.reopen(max(0.0, end - time.monotonic()))
                try:
                    return await self._undo()
                except QmpError:
                    # Lost once more: all of it can be done again.
                    if self.client.connected or time.monotonic() > end:
                        raise
        except SvmStreamError as error:
            raise QmpError(
                f"the guest could not be put back as it was: {error}", hint=self._left()
            ) from error

    async def _undo(self) -> None:
        if self._migrating:
            await self._end_migration()
        if self._migrating or self._stopped:
            await self.resume()
        await self.client.set_parameters(self._parameters)
        await self.client.set_capabilities(self._capabilities)

    async def _end_migration(self) -> Migration:
        start = time.monotonic()
        migration = await self.client.migration()
        cancelled = False
        while migration.active:
            patient = time.monotonic() - start < _PATIENCE_SECONDS
            if not cancelled and not (patient and await self._bad_moment(migration)):
                if await self._fragile():
                    await self._quieten()
                await self.client.execute("migrate_cancel")
                cancelled = True
            if time.monotonic() - start > _END_SECONDS:
                raise QmpError(f"the migration does not end in {_END_SECONDS:g} s")
            await asyncio.sleep(_POLL_SECONDS)
            migration = await self.client.migration()
        return migration

    async def _bad_moment(self, migration: Migration) -> bool:
        # Not while it is being set up; and where a late cancel is not safe, the last pass
        # may end by itself.
        if migration.status == _FIRST:
            return True
        late = self.client.version < _SAFE_TO_CANCEL
        return late and (await self.client.status()).state == _LAST_PASS

    async def _fragile(self) -> bool:
        # A multifd thread that is not done with its pages uses what a cancelled migration of
        # mapped-ram has given back, and QEMU dies (10.0, ``ramblock_set_file_bmap_atomic``).
        states = await self.client.capabilities()
        return all(states.get(name) for name in _FRAGILE)

    async def _quieten(self) -> None:
        # So slow, QEMU sends a little every tenth of a second and rests between.
        await self._set({"max-bandwidth": _SLOW})
        start = since = time.monotonic()
        sent = None
        while (now := time.monotonic()) - start < _PATIENCE_SECONDS:
            migration = await self.client.migration()
            if not migration.active:
                return
            if migration.transferred != sent:
                sent, since = migration.transferred, now
            elif now - since > _REST_SECONDS:
                return
            await asyncio.sleep(_REST_SECONDS / 4)

    def _left(self) -> str:
        # What somebody has to look after now.
        parts = [f"the guest was {'running' if self.before.running else self.before.state}"]
        settings = {**self._capabilities, **self._parameters}
        if settings:
            parts.append(
                "these were " + ", ".join(f"{name}={value}" for name, value in settings.items())
            )
        return "if that QEMU still runs: " + "; ".join(parts)
