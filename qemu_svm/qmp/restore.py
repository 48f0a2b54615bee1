"""A stream into a QEMU that waits for one (``-incoming defer``).

The stream is unpacked on the way, whatever it is packed in, and goes through a
socket that we made and handed over.  multifd channels and QMP over TCP need a
socket on which QEMU listens; a mapped-ram stream is handed over as a file.

QEMU tells little over QMP when it does not take a stream, and often ends.  From
9.1 on it is asked to stay and say why.
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

from qemu_svm.errors import QmpError, Refused, StreamRefused
from qemu_svm.limits import MIB
from qemu_svm.qmp.answers import Status, Version
from qemu_svm.qmp.capture import Progress
from qemu_svm.qmp.client import Client
from qemu_svm.qmp.feed import Feeder
from qemu_svm.source.base import Source
from qemu_svm.source.spool import spool_directory
from qemu_svm.stream import Stream
from qemu_svm.stream.constants import Command
from qemu_svm.stream.ram.multifd import channel_head

_POLL_SECONDS = 0.02
_CONNECT_SECONDS = 5.0
_FILE_URI = Version(8, 2)
_STAYS = Version(9, 1)
"""First QEMU that can stay alive after a stream it did not take."""

MAPPED_RAM = "mapped-ram"


@dataclass(frozen=True, slots=True)
class Restored:
    """A restore that succeeded.

    :param size: bytes of the stream, unpacked, with its channels.
    :param seconds: until QEMU had taken everything.
    :param status: the run state in which QEMU left the guest.
    """

    version: Version
    status: Status
    size: int
    seconds: float


async def restore(
    client: Client,
    stream: Stream,
    channels: Sequence[Source] = (),
    *,
    capabilities: Iterable[str] = (),
    qemu_file: str | None = None,
    progress: Progress | None = None,
) -> Restored:
    """Feed a stream to a QEMU that waits for one.

    :param client: connected.
    :param channels: multifd channels, in any order.
    :param capabilities: to be switched on besides those that the stream names.
    :param qemu_file: QEMU reads the stream itself, from the file that it sees
        under this name.
    :param progress: called with every answer of ``query-migrate``.
    :raises Refused: this QEMU does not wait, or has not what the stream needs.
    :raises StreamRefused: QEMU did not take the stream.
    :raises QmpError: the connection was lost before QEMU had the stream.
    """
    await client.guard("migrate-incoming")
    numbers = sorted(
        ((*channel_head(one, stream.page_size), one) for one in channels),
        key=lambda channel: channel[0],
    )
    if [number for number, _, _ in numbers] != list(range(len(numbers))):
        found = ", ".join(str(number) for number, _, _ in numbers)
        raise Refused(f"the channels are {found}: each from 0 up is needed, once")
    wanted = dict.fromkeys((*capabilities, *_needed(stream)), True)
    known = await client.capabilities()
    missing = [name for name in wanted if name not in known]
    if missing:
        raise Refused(f"this QEMU ({client.version}) has no {missing[0]}, which the stream needs")
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
    feeder = Feeder()
    try:
        async with _incoming(client, stream, qemu_file) as (uri, handed):
            await _start(client, uri)
            await _connect(client, feeder, sources, handed)
            await _wait(client, feeder, progress)
    finally:
        await feeder.close()
    seconds = time.monotonic() - started
    await client.set_parameters({name: before[name] for name in settings if name in before})
    await client.set_capabilities(dict.fromkeys(changed, False))
    size = sum(one.size() for one in sources)
    return Restored(client.version, await client.status(), size, seconds)


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
    # The URI, and what remains to be fed: our end of a pair, where QEMU
    # listens, or nothing.
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
            ours, theirs = socket.socketpair()
            with theirs:
                name = await client.getfd(theirs.fileno())
            yield f"fd:{name}", ours
        elif client.can_pass:
            folder = tempfile.mkdtemp(prefix="svmstream-")
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
    feeder: Feeder,
    sources: Sequence[Source],
    handed: socket.socket | str | None,
) -> None:
    if handed is None:
        return
    if isinstance(handed, socket.socket):
        feeder.add(handed, sources[0])
        return
    for source in sources:
        # The main stream first: before 8.0 QEMU goes by the order.
        if handed:
            connection = socket.socket(socket.AF_UNIX)
            await _until_there(connection, handed)
        else:
            connection = socket.create_connection(await _port(client), _CONNECT_SECONDS)
            connection.settimeout(None)
        feeder.add(connection, source)


async def _until_there(connection: socket.socket, path: str) -> None:
    end = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            connection.connect(path)
        except OSError as error:
            if time.monotonic() > end:
                connection.close()
                raise QmpError(
                    f"QEMU does not listen on {path}: {error.strerror}",
                    hint="does it see another /tmp (a container, a sandbox)?",
                ) from error
            await asyncio.sleep(_POLL_SECONDS)
        else:
            return


async def _port(client: Client) -> tuple[str, int]:
    answer = await client.execute("query-migrate")
    with contextlib.suppress(LookupError, TypeError, ValueError):
        return client.address.host, int(answer["socket-address"][0]["port"])
    raise QmpError(f"{client.address}: QEMU does not say on which port it listens")


async def _wait(client: Client, feeder: Feeder, progress: Progress | None) -> None:
    while True:
        try:
            migration = await client.migration()
        except QmpError as error:
            raise StreamRefused(
                "QEMU ended while it read the stream",
                reason="",
                hint="its own log says why" if feeder.error is None else None,
            ) from (feeder.error or error)
        if progress is not None:
            progress(migration)
        if migration.status == "completed":
            return
        if migration.status == "failed":
            raise StreamRefused("QEMU did not take the stream", reason=migration.error or "")
        await asyncio.sleep(_POLL_SECONDS)


def _file(source: Source) -> tuple[int, int]:
    # A descriptor for reading only, and where the stream starts in that file.
    # Offsets in a mapped-ram stream count from the start of the file.
    if source.compression == "none" and source.container in ("plain", "libvirt"):
        with contextlib.suppress(OSError):
            return os.open(source.path, os.O_RDONLY | os.O_CLOEXEC), source.stream_offset
    fd, path = tempfile.mkstemp(prefix="svmstream-", dir=spool_directory())
    try:
        at = 0
        while data := source.read_at(at, MIB):
            at += os.pwrite(fd, data, at)
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC), 0
    except OSError as error:
        raise QmpError(f"no room for a copy of the stream: {error.strerror}") from error
    finally:
        os.close(fd)
        os.unlink(path)
