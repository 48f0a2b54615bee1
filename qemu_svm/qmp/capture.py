"""Capture of a running QEMU into a file, without disturbing the guest.

QEMU writes into a socket that this process creates and passes to it (``getfd``),
so neither a shell nor a path on QEMU's side is involved.  The guest is resumed
as soon as the last byte was sent; then the file is synced and gets its name.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import shlex
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar

from qemu_svm.errors import (
    CommandRefused,
    EnvironmentFault,
    OutputClosed,
    QmpError,
    Refused,
    StreamError,
)
from qemu_svm.qmp import features, hold, timeouts
from qemu_svm.qmp import journal as journals
from qemu_svm.qmp.address import Address
from qemu_svm.qmp.answers import Event, Migration, Status, Version
from qemu_svm.qmp.client import Client
from qemu_svm.qmp.features import SINCE, CaptureOptions
from qemu_svm.qmp.journal import Journal
from qemu_svm.qmp.output import STANDARD, Output, Standard, writing
from qemu_svm.qmp.receive import Listener, Receiver, pair
from qemu_svm.qmp.session import Session, finish
from qemu_svm.qmp.whole import unfinished
from qemu_svm.results import Result
from qemu_svm.stream.ram.multifd import channel_number

_POLL_SECONDS = 0.1
_SHORT_SECONDS = 0.01  # where no connection shows the end: the guest is stopped until it is seen
_FILE_URI = Version(8, 2)
_MAPPED_RAM = Version(*map(int, SINCE["mapped-ram"].split(".")))
"""First QEMU with ``file:`` URIs."""

_SNAPSHOT_OF_STOPPED = Version(9, 0)
"""First QEMU in which a stopped guest stays stopped after a background snapshot."""

COMPRESSED = {".gz": "gzip", ".xz": "xz", ".bz2": "bzip2", ".zst": "zstd", ".zstd": "zstd",
              ".lzo": "lzop", ".lz4": "lz4", ".lzma": "xz --format=lzma"}  # fmt: skip
"""Suffixes of compressed files, and what makes such a file."""

Progress = Callable[[Migration], None]
"""Called with every answer of ``query-migrate``."""


@dataclass(frozen=True, slots=True, repr=False)
class Captured(Result):
    """A successful capture.

    :param files: paths of the stream and of its multifd channels, in order.
    :param size: bytes in all files.
    :param seconds: from the start of the migration to the end of the capture.
    :param stopped: seconds for which a running guest was stopped; None if it did not run.
    :param migration: QEMU's last answer of ``query-migrate``.
    :param before: run state before the capture.
    :param after: run state after the capture.
    :param left: incomplete files of an earlier capture that was killed.
    """

    verb: ClassVar[str] = "capture"
    files: tuple[str, ...]
    size: int
    seconds: float
    version: Version
    stopped: float | None
    migration: Migration
    before: Status
    after: Status
    left: tuple[str, ...] = ()


def compressed_name(path: str) -> str | None:
    """Return why a file must not have this name: it would be taken for a compressed one."""
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower()
    if suffix not in COMPRESSED:
        return None
    return (
        f"'{name}' is the name of a compressed file, but a capture is not compressed: choose "
        f"another name, or: svmstream capture ... -o - | {COMPRESSED[suffix]} > {name}"
    )


async def capture_stream(
    address: str | Address,
    path: str,
    options: CaptureOptions | None = None,
    *,
    timeout: float = timeouts.ANSWER,
    replace: bool = False,
    qemu_directory: str | None = None,
    progress: Progress | None = None,
) -> Captured:
    """Connect, capture the guest into a file, and disconnect; see :func:`capture`.

    The task can be cancelled until the file has its name: then there is no file, and the
    guest is as before.  A cancellation after that is too late, and the capture is returned.

    :param address: QMP socket, as for :class:`Client`.
    :param timeout: seconds that QEMU may take for an answer.
    """
    client = Client(address, timeout=timeout)
    await client.open()
    try:
        captured = await capture(
            client,
            path,
            options,
            replace=replace,
            qemu_directory=qemu_directory,
            progress=progress,
        )
    except BaseException:
        await finish(client.close())
        raise
    with suppress(asyncio.CancelledError):
        await finish(client.close())
    return captured


async def capture(
    client: Client,
    path: str,
    options: CaptureOptions | None = None,
    *,
    replace: bool = False,
    qemu_directory: str | None = None,
    progress: Progress | None = None,
) -> Captured:
    """Capture the guest into a file; it continues as before.

    :param client: connected.
    :param path: the file, which gets this name when it is complete and on the disk;
        the files of multifd channels are named ``path.channel0`` and so on.  ``-`` is
        standard output.
    :param replace: existing files may be replaced.
    :param qemu_directory: QEMU writes the file itself, into the directory that
        it sees under this name; for sockets that are forwarded from another host.
    :param progress: called with every answer of ``query-migrate``.
    :raises OutputExists: a file of that name exists and ``replace`` is not set.
    :raises OutputClosed: the reader of standard output is gone.
    :raises Refused: this QEMU cannot do it, or not in its present state.
    :raises EnvironmentFault: no room, no permission, no connection.
    """
    options = options or CaptureOptions()
    channels = [_channel(number) for number in range(options.multifd)]
    misnamed = compressed_name(path)
    if misnamed is not None:
        raise Refused(misnamed)
    if path == STANDARD and (options.multifd or options.mapped_ram or qemu_directory):
        raise Refused("standard output can only be written sequentially, as one stream")
    leftovers = await journals.refuse_if_left(client)
    with ExitStack() as stack:
        journal = Journal(client.address, await journals.identity(client), leftovers)
        stack.callback(journal.close)  # after the files are gone
        output = stack.enter_context(
            Standard() if path == STANDARD else Output(path, channels, replace=replace)
        )
        journal.record(files=output.partial())
        work = _Capture(client, output, journal, options, qemu_directory, progress=progress)
        try:
            with writing(path):
                return await work.run()
        except EnvironmentFault as error:
            if path == STANDARD and isinstance(error.__cause__, BrokenPipeError):
                raise OutputClosed("the reader of standard output is gone") from error
            raise


class _Capture:
    def __init__(
        self,
        client: Client,
        output: Output,
        journal: Journal,
        options: CaptureOptions,
        qemu_directory: str | None,
        *,
        progress: Progress | None,
    ) -> None:
        self._client = client
        self._output = output
        self._journal = journal
        self._options = options
        self._qemu_directory = qemu_directory
        self._progress = progress or (lambda _migration: None)
        self._started = time.monotonic()
        self._migration = Migration()
        self._routed: set[str] = set()
        self._hold: hold.Hold | None = None

    async def run(self) -> Captured:
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
            # What QEMU writes to outlives its migration: 10.0 crashes if it cannot be opened.
            async with (
                AsyncExitStack() as target,
                Session(client, before, self._journal) as session,
            ):
                await session.change(todo.capabilities, todo.parameters)
                async with client.events("STOP", "RESUME") as events:
                    await self._save(session, receiver, target)
                    stopped = _between(events.pending())
        finally:
            await receiver.close()
        output = self._output
        self._check_end(receiver)
        output.commit()  # nothing is awaited after it: what has a name is returned
        return Captured(
            files=output.files(),
            size=receiver.received if output.path == STANDARD else output.size(),
            seconds=time.monotonic() - self._started,
            version=client.version,
            stopped=stopped,
            migration=self._migration,
            before=before,
            after=session.after,
            left=self._journal.leftovers,
        )

    def _can_hold(self, before: Status) -> bool:
        options = self._options
        if (
            options.background_snapshot
            and not before.running
            and self._client.version < _SNAPSHOT_OF_STOPPED
        ):
            raise Refused(
                f"QEMU {self._client.version} resumes a stopped guest after a background snapshot",
                hint="capture it without --background-snapshot",
            )
        plain = not (options.background_snapshot or options.mapped_ram or options.multifd)
        passed = self._client.can_pass and self._qemu_directory is None
        readable = self._output.path != STANDARD  # the end of the stream is looked at
        newer = self._client.version >= hold.SINCE
        return newer and plain and passed and readable and not before.running

    async def _save(self, session: Session, receiver: Receiver, target: AsyncExitStack) -> None:
        if not self._options.live:
            await session.stop()
        uri = await target.enter_async_context(self._target(receiver))
        self._started = time.monotonic()
        await session.migrate(uri)
        await self._watch(session, receiver)
        await session.resume()
        await self._settle(receiver)

    # What QEMU writes to.

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
        # Before it is added: whether a cancelled command was carried out is not known.
        stack.push_async_callback(self._remove_fd, number)
        await self._client.add_fd(writer, number)
        return f"file:/dev/fdset/{number}"

    async def _remove_fd(self, number: int) -> None:
        # QEMU removes it by itself when the connection ends.
        with suppress(CommandRefused, QmpError):
            await self._client.execute("remove-fd", {"fdset-id": number})

    def _own_file(self, directory: str) -> str:
        if self._options.multifd and not self._options.mapped_ram:
            raise Refused("multifd channels need sockets, which a directory cannot replace")
        path = os.path.join(directory, os.path.basename(self._output.temporary))
        if self._client.version >= _FILE_URI:
            return f"file:{path}"
        return f"exec:cat > {shlex.quote(path)}"

    def _route(self, head: bytes) -> int:
        # Called in a thread, for each connection.
        number = channel_number(head)
        name = "" if number is None else _channel(number)
        if name in self._routed:
            raise EnvironmentFault(f"QEMU made two connections for {name[1:] or 'the stream'}")
        self._routed.add(name)
        if not name:
            return self._output.descriptors[name]
        made = self._output.create(name)
        self._journal.record(files=self._output.partial())
        return made

    def _check_end(self, receiver: Receiver) -> None:
        # What QEMU says of its migration is not enough: the file must end as a stream does.
        if self._output.path == STANDARD:
            wrong = receiver.unlike_a_stream()
        else:
            from qemu_svm.source import FileSource

            with FileSource(os.dup(self._output.descriptors[""]), self._output.path) as source:
                wrong = unfinished(source)
        if wrong is not None:
            raise EnvironmentFault(
                f"QEMU reported that the migration is completed, but {wrong}",
                hint="nothing was saved" if self._output.path != STANDARD else None,
            )

    def _not_saved(self, reason: str | None) -> Refused | EnvironmentFault:
        full = os.strerror(errno.ENOSPC)
        if full in (reason or ""):  # QEMU has written the file itself
            return EnvironmentFault(f"cannot write '{self._output.path}': {full}")
        hint = None if reason else "see QEMU's own log"
        if self._options.multifd and "Permission denied" in (reason or ""):
            hint = "QEMU runs as another user, who cannot reach our socket: leave out --multifd"
            if self._client.version >= _MAPPED_RAM:
                hint += ", or add --mapped-ram: its channels are in one file, which QEMU is given"
        return Refused(f"QEMU could not save the guest: {reason or 'no reason given'}", hint=hint)

    # While it runs.

    async def _watch(self, session: Session, receiver: Receiver) -> None:
        stop_after = self._options.stop_after
        ended = 0.0
        while True:
            self._migration = migration = await self._client.migration()
            self._progress(migration)
            if receiver.error is not None:
                raise receiver.error
            if migration.status == "completed":
                return
            if self._hold is not None:
                completed = await self._hold.completed(migration)
                if completed is not None:
                    self._migration = completed
                    return
            if migration.status == "cancelled":
                raise Refused("the migration was cancelled by another client")
            if migration.status == "failed":
                raise self._not_saved(migration.error)
            if stop_after is not None and time.monotonic() - self._started > stop_after:
                stop_after = None
                await session.stop()
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_SECONDS if self._routed else _SHORT_SECONDS):
                    await receiver.ended.wait()
            if receiver.ended.is_set():
                # QEMU reports the end a moment after its last byte.
                ended = ended or time.monotonic()
                if time.monotonic() - ended > timeouts.SILENT_END:
                    raise QmpError(
                        f"{self._client.address}: the stream has ended, but QEMU does not report "
                        f"the end of its migration; it reports: {migration.status or 'nothing'}"
                    )
                await asyncio.sleep(0.001)

    async def _settle(self, receiver: Receiver) -> None:
        # Wait until everything that QEMU sent is in the file.
        if self._qemu_directory is None:
            wanted = 0 if self._options.mapped_ram else 1 + self._options.multifd
            if not await receiver.arrived(wanted, timeouts.ARRIVAL):
                raise EnvironmentFault(f"QEMU did not make the expected {wanted} connections")
            await receiver.drain()
            if receiver.error is not None:
                raise receiver.error
            return
        from qemu_svm.source import open_source
        from qemu_svm.stream import read_stream

        end = time.monotonic() + timeouts.ARRIVAL
        while True:
            with open_source(self._output.temporary) as source, suppress(StreamError):
                if read_stream(source).complete:
                    return
            if time.monotonic() > end:
                raise EnvironmentFault(
                    f"'{self._output.temporary}' is not the file that QEMU wrote",
                    hint="check that QEMU sees the output's directory under the name given",
                )
            await asyncio.sleep(_POLL_SECONDS)


def _between(events: list[Event]) -> float | None:
    # Seconds from the first STOP to the last RESUME, by QEMU's clock.
    stops = [event.time for event in events if event.name == "STOP"]
    resumes = [event.time for event in events if event.name == "RESUME"]
    return round(resumes[-1] - stops[0], 6) if stops and resumes else None


def _channel(number: int) -> str:
    return f".channel{number}"
