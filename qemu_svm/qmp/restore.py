"""Restore of a stream into a QEMU that waits for one (``-incoming defer``).

The stream is unpacked on the way, whatever its container, and is sent through a
socket that this process creates and passes to QEMU.  multifd channels and QMP
over TCP need a socket on which QEMU listens; a mapped-ram stream is passed as a
file.

QEMU reports little over QMP when it rejects a stream, and often exits.  From
9.1 on it is asked to stay and report the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

from qemu_svm.errors import QmpError, Refused, StreamRefused
from qemu_svm.limits import MIB
from qemu_svm.qmp import timeouts
from qemu_svm.qmp.answers import Status, Version
from qemu_svm.qmp.capture import Captured, Progress, capture
from qemu_svm.qmp.client import Client
from qemu_svm.qmp.send import Sender
from qemu_svm.results import Result
from qemu_svm.source.base import Source
from qemu_svm.source.spool import spool_directory
from qemu_svm.stream import Stream
from qemu_svm.stream.constants import Command
from qemu_svm.stream.ram.multifd import channel_head

_POLL_SECONDS = 0.02
_FILE_URI = Version(8, 2)
_STAYS = Version(9, 1)
"""First QEMU that can stay alive after it rejected a stream."""

MAPPED_RAM = "mapped-ram"


@dataclass(frozen=True, slots=True)
class Restored:
    """A successful restore.

    :param status: the guest's run state after it.
    :param size: bytes of the stream and its channels, unpacked.
    :param seconds: until QEMU had loaded everything.
    """

    version: Version
    status: Status
    size: int
    seconds: float


@dataclass(frozen=True, slots=True, repr=False)
class RestoreReport(Result):
    """A restore that succeeded, as it is shown.

    :param path: of the stream, as given.
    :param socket: where QEMU's QMP listens, if the user may connect there.
    """

    verb: ClassVar[str] = "restore"
    path: str
    restored: Restored
    socket: str | None


async def restore(
    client: Client,
    stream: Stream,
    channels: Sequence[Source] = (),
    *,
    capabilities: Iterable[str] = (),
    qemu_file: str | None = None,
    run: bool | None = None,
    progress: Progress | None = None,
) -> Restored:
    """Send a stream to a QEMU that waits for one, and wait until it is loaded.

    :param client: connected.
    :param channels: multifd channels, in any order.
    :param capabilities: switched on in addition to those that the stream names.
    :param qemu_file: QEMU reads the stream itself, from the file that it sees
        under this name.
    :param run: afterwards resume the guest, or stop it; None leaves it in the state in
        which QEMU left it.
    :param progress: called with every answer of ``query-migrate``.
    :raises Refused: this QEMU does not wait for a stream, or lacks a feature that
        the stream needs.
    :raises StreamRefused: QEMU rejected the stream.
    :raises StreamError: a channel is not one of multifd.
    :raises QmpError: the connection was lost before the stream was sent, or QEMU
        cannot be given the stream.
    """
    await client.guard("migrate-incoming")
    numbers = sorted(
        ((*channel_head(one, stream.page_size), one) for one in channels),
        key=lambda channel: channel[0],
    )
    if [number for number, _, _ in numbers] != list(range(len(numbers))):
        found = ", ".join(str(number) for number, _, _ in numbers)
        raise Refused(f"the channels given are {found}; each one from 0 up is needed once")
    wanted = dict.fromkeys((*capabilities, *_needed(stream)), True)
    known = await client.capabilities()
    missing = [name for name in wanted if name not in known]
    if missing:
        raise Refused(f"this QEMU ({client.version}) lacks {missing[0]}, which the stream needs")
    if numbers:
        wanted["multifd"] = True
    changed = {name: True for name in wanted if not known[name]}
    settings: dict[str, object] = {}
    if numbers:
        methods = [method for _, method, _ in numbers if method != "none"]
        settings["multifd-channels"] = len(numbers)
        settings["multifd-compression"] = methods[0] if methods else "none"
    before = await client.parameters()
    await client.set_capabilities(changed)
    await client.set_parameters(settings)
    started = time.monotonic()
    sources = [stream.source, *(one for _, _, one in numbers)]
    sender = Sender()
    try:
        async with _incoming(client, stream, qemu_file) as (uri, entrance):
            await _start(client, uri)
            await _connect(client, sender, sources, entrance)
            await _wait(client, sender, progress)
    finally:
        await sender.close()
    seconds = time.monotonic() - started
    await client.set_parameters({name: before[name] for name in settings if name in before})
    await client.set_capabilities(dict.fromkeys(changed, False))
    if run:
        await client.cont()
    elif run is False and (await client.status()).running:
        await client.stop()
    size = sum(one.size() for one in sources)
    return Restored(client.version, await client.status(), size, seconds)


async def save_again(
    client: Client,
    stream: Stream,
    path: str,
    channels: Sequence[Source] = (),
    *,
    qemu_directory: str | None = None,
    progress: Progress | None = None,
) -> tuple[Restored, Captured]:
    """Restore a stream into a waiting QEMU, keep the guest stopped, and capture it again.

    The result is what this QEMU, and its kernel, understood of the stream.

    :param client: connected to a QEMU that waits for a stream.
    :param path: of the new stream.
    :param qemu_directory: QEMU reads and writes the files itself, in the
        directory that it sees under this name.
    :raises Refused: QEMU does not wait for a stream, or rejected it.
    :raises OutputExists: ``path`` exists.
    :raises EnvironmentFault: no room, no permission, no connection.
    """
    await client.guard("migrate-incoming")
    # While QEMU waits, this decides that the guest does not run afterwards.
    await client.execute("stop")
    own_file = None
    if qemu_directory is not None:
        own_file = os.path.join(qemu_directory, os.path.basename(stream.source.path))
    restored = await restore(client, stream, channels, qemu_file=own_file, progress=progress)
    saved = await capture(client, path, qemu_directory=qemu_directory, progress=progress)
    return restored, saved


def _needed(stream: Stream) -> Iterator[str]:
    # Capabilities without which QEMU does not read this stream.
    if stream.configuration is not None:
        yield from stream.configuration.capabilities
    for record in stream.records:
        # An empty one is for dirty bitmaps, which need none.
        if record.name == Command.POSTCOPY_ADVISE.name and record.payload_size:
            yield "postcopy-ram"


@asynccontextmanager
async def _incoming(
    client: Client, stream: Stream, qemu_file: str | None
) -> AsyncIterator[tuple[str, socket.socket | str | None]]:
    # The URI, and how to send the stream: our end of a socket pair, the path on which
    # QEMU listens ("" for a TCP port), or None if QEMU opens a file.
    mapped = stream.configuration and MAPPED_RAM in stream.configuration.capabilities
    multifd = (await client.capabilities()).get("multifd", False)
    async with AsyncExitStack() as stack:
        if qemu_file is not None:
            if mapped or client.version >= _FILE_URI:
                yield f"file:{qemu_file}", None
            else:
                yield f"exec:cat {shlex.quote(qemu_file)}", None
        elif mapped:
            fd, offset = _file(stream.source)
            stack.callback(os.close, fd)
            number = await client.add_fd(fd)
            yield f"file:/dev/fdset/{number}" + (f",offset={offset}" if offset else ""), None
        elif client.can_pass and not multifd:
            try:
                ours, theirs = socket.socketpair()
            except OSError as error:
                raise QmpError(f"cannot make a pair of sockets: {error.strerror}") from error
            with theirs:
                name = await client.getfd(theirs.fileno())
            yield f"fd:{name}", ours
        elif client.can_pass:
            try:
                folder = tempfile.mkdtemp(prefix="svmstream-")
            except OSError as error:
                raise QmpError(f"cannot make a directory: {error.strerror}") from error
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            yield f"unix:{folder}/incoming", f"{folder}/incoming"
        else:
            yield f"tcp:{client.address.host}:0", ""


async def _start(client: Client, uri: str) -> None:
    arguments: dict[str, object] = {"uri": uri}
    if client.version >= _STAYS:
        arguments["exit-on-error"] = False
    await client.execute("migrate-incoming", arguments)


async def _connect(
    client: Client,
    sender: Sender,
    sources: Sequence[Source],
    entrance: socket.socket | str | None,
) -> None:
    if entrance is None:
        return
    if isinstance(entrance, socket.socket):
        sender.add(entrance, sources[0])
        return
    for source in sources:
        # The main stream first: before 8.0 QEMU goes by the order.
        sender.add(await _connected(entrance or await _port(client)), source)


async def _connected(place: str | tuple[str, int]) -> socket.socket:
    # A connection to a path, once QEMU listens there, or to a host and port.
    if isinstance(place, tuple):
        try:
            connection = socket.create_connection(place, timeouts.LISTEN)
        except (OSError, OverflowError, UnicodeError) as error:  # also of a host or port
            reason = error.strerror if isinstance(error, OSError) else None
            raise QmpError(
                f"cannot connect to QEMU's port {place[1]} for the stream: {reason or error}"
            ) from error
        connection.settimeout(None)
        return connection
    end = time.monotonic() + timeouts.LISTEN
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(place)
        except OSError as error:
            connection.close()
            if time.monotonic() > end:
                raise QmpError(
                    f"QEMU does not listen on {place}: {error.strerror}",
                    hint="check that QEMU sees the same /tmp (a container, a sandbox)",
                ) from error
            await asyncio.sleep(_POLL_SECONDS)
        else:
            return connection


async def _port(client: Client) -> tuple[str, int]:
    answer = await client.execute("query-migrate")
    with contextlib.suppress(LookupError, TypeError, ValueError):
        return client.address.host, int(answer["socket-address"][0]["port"])
    raise QmpError(f"{client.address}: QEMU does not report the port on which it listens")


async def _wait(client: Client, sender: Sender, progress: Progress | None) -> None:
    while True:
        try:
            migration = await client.migration()
        except QmpError as error:
            raise StreamRefused(
                "QEMU exited while it read the stream",
                reason="",
                hint="see its own log" if sender.error is None else None,
            ) from (sender.error or error)
        if progress is not None:
            progress(migration)
        if migration.status == "completed":
            return
        if migration.status == "failed":
            raise StreamRefused("QEMU rejected the stream", reason=migration.error or "")
        await asyncio.sleep(_POLL_SECONDS)


def _file(source: Source) -> tuple[int, int]:
    # A descriptor for reading only, and the offset of the stream in that file.
    # Offsets in a mapped-ram stream count from the start of the file.
    if source.compression == "none" and source.container in ("plain", "libvirt"):
        with contextlib.suppress(OSError):
            return os.open(source.path, os.O_RDONLY | os.O_CLOEXEC), source.stream_offset
    try:
        with tempfile.NamedTemporaryFile(prefix="svmstream-", dir=spool_directory()) as copy:
            at = 0
            while data := source.read_at(at, MIB):
                at += os.pwrite(copy.fileno(), data, at)
            return os.open(copy.name, os.O_RDONLY | os.O_CLOEXEC), 0
    except OSError as error:
        raise QmpError(f"cannot make a copy of the stream: {error.strerror}") from error
