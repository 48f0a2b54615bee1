"""What a capture changes in QEMU, undone on every way out.

Each change is recorded *before* it is made, because after a lost connection
nobody knows whether a command was carried out.  The undoing runs to completion
even if the task is cancelled: the guest comes first.  If the connection was
lost, it is made again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu_svm.errors import CommandRefused, QmpError, Refused, SvmStreamError
from qemu_svm.qmp import timeouts
from qemu_svm.qmp.answers import Migration, Status, Version
from qemu_svm.qmp.client import Client
from qemu_svm.qmp.journal import Journal

_T = TypeVar("_T")

_POLL_SECONDS = 0.02

_FIRST = "setup"
_LAST_PASS = "finish-migrate"
_FRAGILE = ("mapped-ram", "multifd")  # together
_SLOW = 10_000  # bytes a second
_PAUSE_SECONDS = 0.02
_SAFE_TO_CANCEL = Version(10, 0)

# Run states of a guest that ran before, and that only we stopped.
_OURS = frozenset({"postmigrate", _LAST_PASS})


class Session:
    """A migration of ours, and all that has to be restored after it.

    :param before: the run state at the start.
    :param journal: told of each change before it is made.
    """

    def __init__(self, client: Client, before: Status, journal: Journal) -> None:
        self.client = client
        self.before = before
        self.after = before
        self._journal = journal
        self._capabilities: dict[str, bool] = {}
        self._parameters: dict[str, Any] = {}
        self._migrating = False
        self._stopped = False

    async def change(
        self, capabilities: Mapping[str, bool], parameters: Mapping[str, object]
    ) -> None:
        """Switch capabilities and set parameters; both are restored at the end."""
        self._capabilities = {name: not state for name, state in capabilities.items()}
        self._journal.record(running=self.before.running, capabilities=self._capabilities)
        await self.client.set_capabilities(capabilities)
        await self._set(parameters)

    async def _set(self, parameters: Mapping[str, object]) -> None:
        old = await self.client.parameters()
        found = {name: old[name] for name in parameters if name in old}
        self._parameters = found | self._parameters  # the first value recorded is the original
        self._journal.record(parameters=self._parameters)
        await self.client.set_parameters(parameters)

    async def stop(self) -> None:
        """Stop the guest; if it ran, it is resumed at the end."""
        self._stopped = self.before.running
        await self.client.stop()

    async def migrate(self, uri: str) -> None:
        """Start the migration; if it still runs at the end, it is cancelled.

        :raises CommandRefused: QEMU did not start it.
        :raises Refused: QEMU does not end the one before.
        """
        await self._cleaned_up()
        self._migrating = True
        try:
            await self.client.execute("migrate", {"uri": uri})
        except CommandRefused:
            self._migrating = False
            raise

    async def _cleaned_up(self) -> None:
        # A migration that has failed is reported before QEMU has done with it.  If another
        # one is started meanwhile, 7.2 refuses ("duplicate yank instance") and believes for
        # ever after that it is in progress (``qmp_migrate``).
        start = time.monotonic()
        while await self._yanked():
            if time.monotonic() - start > timeouts.SETTLED:
                raise Refused(
                    f"QEMU has not done with an earlier migration after {timeouts.SETTLED:g} s",
                    hint="try again later",
                )
            await asyncio.sleep(_POLL_SECONDS)

    async def _yanked(self) -> bool:
        try:
            found = await self.client.execute("query-yank")
        except CommandRefused:
            return False  # before 6.0
        instances = found if isinstance(found, list) else []
        return any(isinstance(one, dict) and one.get("type") == "migration" for one in instances)

    async def resume(self) -> None:
        """Resume the guest if it ran before, and record the run state in ``after``.

        ``cont`` is sent even if QEMU has resumed the guest by itself: before
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
            await finish(self._restore())
        except SvmStreamError as fault:
            raise fault from error

    async def _restore(self) -> None:
        end = time.monotonic() + timeouts.RECONNECT
        try:
            while True:
                if not self.client.connected:
                    await self.client.reopen(max(0.0, end - time.monotonic()))
                try:
                    return await self._undo()
                except QmpError:
                    # Lost again: every step can be repeated.
                    if self.client.connected or time.monotonic() > end:
                        raise
        except SvmStreamError as error:
            raise QmpError(
                f"the guest could not be restored to its previous state: {error}",
                hint=self._unrestored(),
            ) from error

    async def _undo(self) -> None:
        if self._migrating:
            await self._end_migration()
        if self._migrating or self._stopped:
            await self.resume()
        await self.client.set_parameters(self._parameters)
        await self.client.set_capabilities(self._capabilities)
        self._journal.record(running=False, capabilities={}, parameters={})

    async def _end_migration(self) -> Migration:
        start = time.monotonic()
        migration = await self.client.migration()
        cancelled = False
        while migration.active:
            patient = time.monotonic() - start < timeouts.SAFE_CANCEL
            if not cancelled and not (patient and await self._unsafe_to_cancel(migration)):
                if await self._fragile():
                    await self._wait_for_pause()
                await self.client.execute("migrate_cancel")
                cancelled = True
            if time.monotonic() - start > timeouts.MIGRATION_END:
                raise QmpError(f"the migration does not end within {timeouts.MIGRATION_END:g} s")
            await asyncio.sleep(_POLL_SECONDS)
            migration = await self.client.migration()
        return migration

    async def _unsafe_to_cancel(self, migration: Migration) -> bool:
        # While it is being set up; and in the last pass of a QEMU in which a late cancel
        # is not safe: the pass may end by itself.
        if migration.status == _FIRST:
            return True
        late = self.client.version < _SAFE_TO_CANCEL
        return late and (await self.client.status()).state == _LAST_PASS

    async def _fragile(self) -> bool:
        # A multifd thread that still has pages uses memory that a cancelled migration of
        # mapped-ram has freed, and QEMU crashes (10.0, ``ramblock_set_file_bmap_atomic``).
        states = await self.client.capabilities()
        return all(states.get(name) for name in _FRAGILE)

    async def _wait_for_pause(self) -> None:
        # At this bandwidth QEMU sends a little every tenth of a second and pauses between.
        await self._set({"max-bandwidth": _SLOW})
        start = since = time.monotonic()
        sent = None
        while (now := time.monotonic()) - start < timeouts.SAFE_CANCEL:
            migration = await self.client.migration()
            if not migration.active:
                return
            if migration.transferred != sent:
                sent, since = migration.transferred, now
            elif now - since > _PAUSE_SECONDS:
                return
            await asyncio.sleep(_PAUSE_SECONDS / 4)

    def _unrestored(self) -> str:
        # The previous state, for whoever has to restore it by hand.
        parts = [f"the guest was {'running' if self.before.running else self.before.state}"]
        settings = {**self._capabilities, **self._parameters}
        if settings:
            words = ", ".join(f"{name}={value}" for name, value in settings.items())
            parts.append(f"its settings were {words}")
        return "if that QEMU still runs: " + "; ".join(parts)


async def finish(work: Coroutine[Any, Any, _T]) -> _T:
    """Run ``work`` to completion even if this task is cancelled meanwhile.

    :returns: the result of ``work``.
    :raises asyncio.CancelledError: this task was cancelled; raised when ``work`` has
        completed.  An error of ``work`` takes precedence.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as stop:
            cancelled = stop
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
