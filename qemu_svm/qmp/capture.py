"""A stream out of a running QEMU, without hurting the guest.

QEMU writes into a socket that we made and handed over (``getfd``), so neither
a shell nor a path on QEMU's side is involved.  When the last byte was sent, the
guest is woken up at once; then the file is made durable and gets its name.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from qemu_svm.errors import CommandRefused, EnvironmentFault, QmpError, Refused, StreamError
from qemu_svm.qmp import features, hold
from qemu_svm.qmp.answers import Event, Migration, Status, Version
from qemu_svm.qmp.client import Client
from qemu_svm.qmp.features import Options
from qemu_svm.qmp.output import Output, Standard
from qemu_svm.qmp.receive import Listener, Receiver, pair
from qemu_svm.qmp.session import Session
from qemu_svm.stream.ram.multifd import channel_number

_POLL_SECONDS = 0.1
_SHORT_SECONDS = 0.01  # where no connection tells the end: the guest waits for us
_SETTLE_SECONDS = 10.0
_FILE_URI = Version(8, 2)
"""First QEMU that writes files itself."""

_SNAPSHOT_OF_STOPPED = Version(9, 0)
"""First QEMU that leaves a stopped guest stopped after a background snapshot."""

STANDARD = "-"
"""Path of standard output."""

Progress = Callable[[Migration], None]


@dataclass(frozen=True, slots=True)
class Captured:
    """A capture that succeeded.

    :param files: the stream, then its multifd channels.
    :param size: bytes of all files.
    :param seconds: from the start of the migration to the end.
    :param stopped: seconds that a guest which ran was stopped; None if it did not.
    :param migration: what QEMU told at the end.
    :param before: run state of the guest when we came.
    :param after: run state in which it was left.
    """

    files: tuple[str, ...]
    size: int
    seconds: float
    version: Version
    stopped: float | None
    migration: Migration
    before: Status
    after: Status


async def capture(
    client: Client,
    path: str,
    options: Options | None = None,
    *,
    replace: bool = False,
    qemu_directory: str | None = None,
    progress: Progress | None = None,
) -> Captured:
    """Save the guest into a file, and let it go on as before.

    :param client: connected.
    :param path: gets its name when complete and on the disk; multifd channels
        get it with ``.channel0`` and so on behind it.  ``-`` is standard output.
    :param replace: an existing file may be replaced.
    :param qemu_directory: QEMU writes the file itself, into the directory that
        it sees under this name; for sockets that are forwarded from elsewhere.
    :param progress: called with every answer of ``query-migrate``.
    :raises FileExistsError: ``path`` exists.
    :raises Refused: this QEMU cannot or will not do it now.
    :raises EnvironmentFault: no room, no permission, no connection.
    """
    options = options or Options()
    channels = [_channel(number) for number in range(options.multifd)]
    if path == STANDARD and (options.multifd or options.mapped_ram or qemu_directory):
        raise Refused("standard output takes one stream, from front to back")
    try:
        made = Standard() if path == STANDARD else Output(path, channels, replace=replace)
        with made as output:
            work = _Capture(client, output, options, qemu_directory, progress)
            await work.run()
            files = output.commit()
    except (FileExistsError, BrokenPipeError):
        raise
    except OSError as error:
        raise EnvironmentFault(f"cannot write '{path}': {error.strerror}") from error
    return work.result(files)


class _Capture:
    def __init__(
        self,
        client: Client,
        output: Output,
        options: Options,
        qemu_directory: str | None,
        progress: Progress | None,
    ) -> None:
        self._client = client
        self._output = output
        self._options = options
        self._qemu_directory = qemu_directory
        self._progress = progress or (lambda _migration: None)
        self._started = time.monotonic()
        self._migration = Migration()
        self._session: Session | None = None
        self._routed: set[str] = set()
        self._stopped: float | None = None
        self._hold: hold.Hold | None = None
        self._sent = 0

    async def run(self) -> None:
        client, options = self._client, self._options
        before = await client.guard("migrate")
        known: frozenset[str] = frozenset()
        if options.multifd:
            known = features.compressions(await client.execute("query-qmp-schema"))
        capabilities = await client.capabilities()
        held = self._can_hold(before) and hold.CAPABILITY in capabilities
        todo = features.plan(
            options,
            client.version,
            capabilities,
            await client.parameters(),
            known,
            asked=[hold.CAPABILITY] if held else [],
        )
        receiver = Receiver(self._route, hold.OPENING if held else b"")
        if held:
            self._hold = hold.Hold(client, receiver, self._output.temporary)
        try:
            # What QEMU writes to outlives its migration: 10.0 dies when it cannot be opened.
            async with AsyncExitStack() as target, Session(client, before) as self._session:
                await self._session.change(todo.capabilities, todo.parameters)
                async with client.events("STOP", "RESUME") as events:
                    await self._save(self._session, receiver, target)
                    self._stopped = _between(events.pending())
        finally:
            await receiver.close()
            self._sent = receiver.received

    def _can_hold(self, before: Status) -> bool:
        options = self._options
        if (
            options.background_snapshot
            and not before.running
            and self._client.version < _SNAPSHOT_OF_STOPPED
        ):
            raise Refused(
                f"QEMU {self._client.version} lets a stopped guest run after a background snapshot",
                hint="capture it without --background-snapshot",
            )
        plain = not (options.background_snapshot or options.mapped_ram or options.multifd)
        handed = self._client.can_pass and self._qemu_directory is None
        seen = self._output.path != STANDARD  # its end has to be looked at
        newer = self._client.version >= hold.SINCE
        return newer and plain and handed and seen and not before.running

    async def _save(self, session: Session, receiver: Receiver, target: AsyncExitStack) -> None:
        if not self._options.live:
            await session.stop()
        uri = await target.enter_async_context(self._target(receiver))
        self._started = time.monotonic()
        await session.migrate(uri)
        await self._watch(session, receiver)
        await session.resume()
        await self._settle(receiver)

    def result(self, files: tuple[str, ...]) -> Captured:
        assert self._session is not None
        return Captured(
            files=files,
            size=sum(map(os.path.getsize, files)) if self._output.path != STANDARD else self._sent,
            seconds=time.monotonic() - self._started,
            version=self._client.version,
            stopped=self._stopped,
            migration=self._migration,
            before=self._session.before,
            after=self._session.after,
        )

    # Where QEMU writes to.

    @asynccontextmanager
    async def _target(self, receiver: Receiver) -> AsyncIterator[str]:
        client = self._client
        async with AsyncExitStack() as stack:
            if self._qemu_directory is not None:
                yield self._own_file(self._qemu_directory)
            elif self._options.mapped_ram:
                yield await self._passed_file(stack)
            elif self._options.multifd or not client.can_pass:
                host = None if client.can_pass else client.address.host
                listener = Listener(receiver, host)
                stack.callback(listener.close)
                yield listener.uri
            else:
                with pair(receiver) as theirs:
                    name = await client.getfd(theirs.fileno())
                yield f"fd:{name}"

    async def _passed_file(self, stack: AsyncExitStack) -> str:
        # mapped-ram seeks, and opens the file once for each channel.
        writer = self._output.writer()
        stack.callback(os.close, writer)
        number = secrets.randbelow(1 << 31)
        # Before it is there: nobody knows what was done of a command that is cancelled.
        stack.push_async_callback(self._remove_fd, number)
        await self._client.add_fd(writer, number)
        return f"file:/dev/fdset/{number}"

    async def _remove_fd(self, number: int) -> None:
        # It goes by itself when the connection ends.
        with suppress(CommandRefused, QmpError):
            await self._client.execute("remove-fd", {"fdset-id": number})

    def _own_file(self, directory: str) -> str:
        if self._options.multifd and not self._options.mapped_ram:
            raise Refused("multifd channels need sockets, which do not go through a directory")
        path = os.path.join(directory, os.path.basename(self._output.temporary))
        if self._client.version >= _FILE_URI:
            return f"file:{path}"
        return f"exec:cat > {shlex.quote(path)}"

    def _route(self, head: bytes) -> int:
        # Called in a thread, for each connection.
        number = channel_number(head)
        name = "" if number is None else _channel(number)
        if name in self._routed:
            raise FileExistsError(errno.EEXIST, "two connections for one channel", name)
        self._routed.add(name)
        return self._output.create(name) if name else self._output.descriptors[name]

    # While it runs.

    async def _watch(self, session: Session, receiver: Receiver) -> None:
        stop_after = self._options.stop_after
        while True:
            self._migration = migration = await self._client.migration()
            self._progress(migration)
            if receiver.error is not None:
                raise receiver.error
            if migration.status == "completed":
                return
            if self._hold is not None:
                over = await self._hold.over(migration)
                if over is not None:
                    self._migration = over
                    return
            if migration.status == "cancelled":
                raise Refused("the migration was cancelled by somebody else")
            if migration.status == "failed":
                raise Refused(
                    f"QEMU could not save the guest: {migration.error or 'it does not say why'}",
                    hint=None if migration.error else "see QEMU's own log",
                )
            if stop_after is not None and time.monotonic() - self._started > stop_after:
                stop_after = None
                await session.stop()
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS if self._routed else _SHORT_SECONDS):
                    await receiver.ended.wait()
            if receiver.ended.is_set():
                # The end of the data and QEMU's word of it are a moment apart.
                await asyncio.sleep(0.001)

    async def _settle(self, receiver: Receiver) -> None:
        # Everything that QEMU sent has to be in the file.
        if self._qemu_directory is None:
            wanted = 0 if self._options.mapped_ram else 1 + self._options.multifd
            if not await receiver.arrived(wanted, _SETTLE_SECONDS):
                raise EnvironmentFault(f"QEMU did not make the {wanted} connections it was to make")
            await receiver.drain()
            if receiver.error is not None:
                raise receiver.error
            return
        from qemu_svm.source import open_source
        from qemu_svm.stream import read_stream

        end = time.monotonic() + _SETTLE_SECONDS
        while True:
            with open_source(self._output.temporary) as source, suppress(StreamError):
                if read_stream(source).complete:
                    return
            if time.monotonic() > end:
                raise EnvironmentFault(
                    f"'{self._output.temporary}' is not what QEMU wrote",
                    hint="does QEMU see the output's directory under the name given?",
                )
            await asyncio.sleep(_POLL_SECONDS)


def _between(events: list[Event]) -> float | None:
    # From the first STOP to the last RESUME, by QEMU's clock.
    stops = [event.time for event in events if event.name == "STOP"]
    resumes = [event.time for event in events if event.name == "RESUME"]
    return round(resumes[-1] - stops[0], 6) if stops and resumes else None


def _channel(number: int) -> str:
    return f".channel{number}"
