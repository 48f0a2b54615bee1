"""A QMP connection: negotiation, timeouts, typed answers, file descriptors.

Built on :mod:`qemu.qmp`.  Every failure is raised as one of two errors, with
the cause as ``__cause__``: :class:`~qemu_svm.errors.CommandRefused` if QEMU
answered with an error, :class:`~qemu_svm.errors.QmpError` if there is no
(usable) answer.  After a lost connection it is not known whether the last
command was carried out; the error says so, and only commands that change
nothing are repeated (:meth:`Client.query`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

from qemu.qmp import ConnectError, EventListener, ExecuteError, Message, QMPClient, QMPError
from qemu.qmp.error import ProtocolError
from qemu.qmp.protocol import Runstate
from qemu.qmp.qmp_client import GreetingError, NegotiationError

from qemu_svm.errors import CommandRefused, QmpError
from qemu_svm.qmp import answers, guards, timeouts
from qemu_svm.qmp.address import Address, parse_address
from qemu_svm.qmp.answers import Event, Migration, Status, Version

_RETRY_SECONDS = 0.1

_LONGEST = 2 << 20
"""Bytes of a message: parsed it may take 35 times as much.  The longest
that a QEMU sends are its schema (248 KB in 11.1) and a list of thousands of vCPUs."""

_UNREADABLE = (GreetingError, NegotiationError, UnicodeDecodeError, RecursionError)
"""Errors of a greeting that is none, besides ValueError itself."""

_TOO_LONG = "Separator is"
"""So asyncio begins to say that it is longer."""

_PENDING = 256
"""Events that nobody has asked for yet; of more, the oldest are dropped."""

_LONGEST_EVENT = 4 << 10
"""Bytes of an event; QEMU's have some hundred."""

_WORDS = 2000
"""Characters of a reason that are shown."""


class Client:
    """One QEMU, through its QMP socket.

    Use with ``async with``::

        async with Client.connect("unix:/run/vm.qmp") as qmp:
            print(await qmp.status())

    :param timeout: seconds that QEMU may take for an answer.
    :param connect_timeout: seconds that QEMU may take for its greeting.
    :raises QmpError: the address has no known form.
    """

    def __init__(
        self,
        address: str | Address,
        *,
        timeout: float = timeouts.ANSWER,
        connect_timeout: float = timeouts.CONNECT,
    ) -> None:
        self.address = parse_address(address) if isinstance(address, str) else address
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._qmp: QMPClient | None = None
        self._version: Version | None = None
        self._names = 0

    @classmethod
    def connect(
        cls,
        address: str | Address,
        *,
        timeout: float = timeouts.ANSWER,
        connect_timeout: float = timeouts.CONNECT,
    ) -> Self:
        """Return a client for ``async with``, which connects it; parameters as for the class."""
        return cls(address, timeout=timeout, connect_timeout=connect_timeout)

    # Connection.

    async def open(self) -> None:
        """Connect and negotiate.

        :raises QmpError: nobody listens, it is not a QMP socket, or it does not answer.
        """
        qmp = _protocol()
        libvirts = self._libvirts()
        within = self._connect_timeout
        within = within if libvirts is None else min(within, timeouts.TAKEN)
        try:
            async with asyncio.timeout(within):
                try:
                    await qmp.connect(self.address.target)
                except ConnectError as error:
                    if not _late_answer(error):
                        raise
                    qmp = _protocol()
                    await qmp.connect(self.address.target)
        except TimeoutError as error:
            raise QmpError(
                f"{self.address}: connected, but no greeting in {within:g} s",
                hint=libvirts
                or "a QMP socket serves one client at a time: is another one connected "
                "(libvirt, a monitor)?",
            ) from error
        except ConnectError as error:
            raise self._connect_error(error) from error
        except AssertionError as error:
            # What connect() raises if the server disconnects right after negotiation.
            cause = await _end(qmp)
            raise QmpError(f"{self.address}: QEMU closed the connection") from cause or error
        self._qmp = qmp
        greeting = qmp.greeting
        try:
            self._version = answers.version(greeting.QMP.version if greeting else None)
        except QmpError:
            await self.close()
            raise

    async def close(self) -> None:
        """End the connection; never fails, and may be called again."""
        qmp, self._qmp = self._qmp, None
        if qmp is not None:
            await _end(qmp)

    async def reopen(self, within: float) -> None:
        """Connect again, repeatedly until it succeeds.

        :param within: seconds after which to give up; :data:`timeouts.NOBODY_LISTENS`
            if nobody listens, because that QEMU has most probably ended.
        :raises QmpError: the error of the last attempt.
        """
        await self.close()
        start = time.monotonic()
        while True:
            try:
                return await self.open()
            except QmpError as error:
                gone = isinstance(error.__cause__, ConnectError) and isinstance(
                    error.__cause__.exc, (ConnectionRefusedError, FileNotFoundError)
                )
                limit = min(within, timeouts.NOBODY_LISTENS) if gone else within
                if time.monotonic() - start >= limit:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether commands can be sent."""
        return self._qmp is not None and self._qmp.runstate is Runstate.RUNNING

    @property
    def version(self) -> Version:
        """QEMU's version, from its greeting.

        :raises QmpError: never connected.
        """
        if self._version is None:
            raise QmpError(f"{self.address}: not connected")
        return self._version

    # Commands.

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Execute a command and return QEMU's answer.

        :raises CommandRefused: QEMU answered with an error.
        :raises QmpError: no connection, no answer in time, or the connection
            was lost; it is then unknown whether the command was carried out.
        """
        qmp = self._running()
        try:
            async with asyncio.timeout(self._timeout):
                return await qmp.execute(command, arguments)
        except ExecuteError as error:
            raise CommandRefused(
                f"QEMU refused '{command}': {str(error)[:_WORDS]}",
                command=command,
                error_class=error.error_class,
                reason=str(error)[:_WORDS],
            ) from error
        except TimeoutError as error:
            raise QmpError(
                f"{self.address}: no answer to '{command}' in {self._timeout:g} s; "
                "it is not known whether it was carried out"
            ) from error
        except (QMPError, OSError, EOFError) as error:
            await self._lost(command, error)
            raise AssertionError from error  # _lost always raises

    async def query(self, command: str, within: float = 0.0) -> Any:
        """Execute a command that changes nothing; repeat it once if the connection is lost.

        :param within: seconds for which to try to connect again; 0 not to repeat it.
        :raises CommandRefused, QmpError: see :meth:`execute`.
        """
        try:
            return await self.execute(command)
        except QmpError:
            if not within or self.connected:
                raise
        await self.reopen(within)
        return await self.execute(command)

    async def guard(self, command: str) -> Status:
        """Check that ``command`` may be called in the guest's present state; return that state.

        :raises Refused: it may not be called; nothing was changed.
        """
        status = await self.status()
        rule = guards.GUARDS.get(command)
        migration = await self.migration() if rule is not None and rule.idle else None
        guards.check(command, status, migration)
        return status

    async def status(self) -> Status:
        """Return the run state."""
        return answers.status(await self.execute("query-status"))

    async def migration(self) -> Migration:
        """Return QEMU's report on the present or last migration."""
        return answers.migration(await self.execute("query-migrate"))

    async def capabilities(self) -> dict[str, bool]:
        """Return the migration capabilities of this QEMU: whether each is on, by name."""
        return answers.capabilities(await self.execute("query-migrate-capabilities"))

    async def parameters(self) -> Mapping[str, Any]:
        """Return the migration parameters by name."""
        found = await self.execute("query-migrate-parameters")
        return answers.mapping(found, "query-migrate-parameters")

    async def commands(self) -> frozenset[str]:
        """Return the names of this QEMU's commands."""
        return answers.commands(await self.execute("query-commands"))

    async def set_capabilities(self, states: Mapping[str, bool]) -> None:
        """Switch migration capabilities on and off."""
        wanted = [{"capability": name, "state": state} for name, state in states.items()]
        if wanted:
            await self.execute("migrate-set-capabilities", {"capabilities": wanted})

    async def set_parameters(self, values: Mapping[str, object]) -> None:
        """Set migration parameters."""
        if values:
            await self.execute("migrate-set-parameters", values)

    async def cont(self) -> None:
        """Resume the guest."""
        await self.execute("cont")

    async def stop(self) -> None:
        """Stop the guest."""
        await self.execute("stop")

    # File descriptors.

    @property
    def can_pass(self) -> bool:
        """Whether file descriptors can be passed."""
        return self.address.passes

    async def getfd(self, fd: int) -> str:
        """Pass QEMU a copy of a descriptor; return its name there (``fd:NAME``).

        QEMU closes it when a command has used it, with ``closefd``, or when the
        connection ends.

        :raises QmpError: it is not a UNIX socket, or the descriptor cannot be passed.
        """
        self._names += 1
        name = f"svmstream{self._names}"
        self._send(fd)
        await self.execute("getfd", {"fdname": name})
        return name

    async def add_fd(self, fd: int, number: int | None = None) -> int:
        """Pass QEMU a copy of a descriptor; return the number N of its ``/dev/fdset/N``.

        :param number: N, if it has to be known beforehand; else QEMU chooses it.
        :raises QmpError: it is not a UNIX socket, or the descriptor cannot be passed.
        """
        self._send(fd)
        wanted = None if number is None else {"fdset-id": number}
        answer = answers.mapping(await self.execute("add-fd", wanted), "add-fd")
        found = answers.number(answer, "fdset-id")
        if found is None:
            raise answers.unexpected("add-fd", answer)
        return found

    def _send(self, fd: int) -> None:
        if not self.can_pass:
            raise QmpError(
                f"{self.address}: file descriptors cannot be passed over TCP",
                hint="use QEMU's UNIX socket",
            )
        try:
            self._running().send_fd_scm(fd)
        except ConnectionError as error:
            raise QmpError(
                f"{self.address}: the connection was lost, no file descriptor was passed"
            ) from error
        except OSError as error:
            raise QmpError(
                f"{self.address}: cannot pass a file descriptor: {error.strerror}"
            ) from error

    # Events.

    @contextlib.asynccontextmanager
    async def events(self, *names: str) -> AsyncIterator[Events]:
        """Collect events while the context lasts: those named, or all.

        :raises QmpError: not connected.
        """
        qmp = self._running()
        listener = _Listener(names or None)
        with qmp.listen(listener):
            yield Events(self, qmp, listener)

    def _running(self) -> QMPClient:
        if self._qmp is None:
            raise QmpError(f"{self.address}: not connected")
        if self._qmp.runstate is not Runstate.RUNNING:
            raise QmpError(f"{self.address}: the connection was lost")
        return self._qmp

    async def _lost(self, command: str, error: Exception) -> None:
        # disconnect() raises the reason why a command was interrupted.
        qmp, self._qmp = self._qmp, None
        cause = (await _end(qmp) if qmp is not None else None) or error
        raise QmpError(
            f"{self.address}: the connection was lost during '{command}' ({_reason(cause)}); "
            "it is not known whether it was carried out"
        ) from cause

    def _libvirts(self) -> str | None:
        # libvirt keeps one client connected to its own sockets, and they take no other.
        from qemu_svm.qmp.domain import domain_of

        name = None if self.address.path is None else domain_of(self.address.path)
        if name is None:
            return None
        return f"this is libvirt's own monitor of the domain '{name}': use --domain '{name}'"

    def _connect_error(self, error: ConnectError) -> QmpError:
        cause = error.exc
        libvirts = self._libvirts()
        if libvirts is not None and not isinstance(cause, FileNotFoundError):
            return QmpError(f"{self.address}: no answer to a second client", hint=libvirts)
        if isinstance(cause, _UNREADABLE) or type(cause) is ValueError:
            return QmpError(
                f"{self.address}: this is not a QMP socket: {_reason(cause)}",
                hint="an HMP monitor, a serial port or a guest agent? -qmp makes a QMP socket",
            )
        if isinstance(cause, EOFError):
            return QmpError(
                f"{self.address}: the connection was closed before a greeting",
                hint="a QMP socket serves one client at a time",
            )
        if isinstance(cause, FileNotFoundError):
            return QmpError(f"{self.address}: no such socket", hint="is the VM running?")
        if isinstance(cause, ConnectionRefusedError):
            return QmpError(f"{self.address}: nobody listens there", hint="has its QEMU exited?")
        return QmpError(f"{self.address}: cannot connect: {_reason(cause)}")


class _Listener(EventListener):
    # Keeps events until they are asked for, and of very many the last ones; the class that it
    # extends keeps each for ever.
    async def put(self, event: Message) -> None:
        if not self.accept(event) or len(bytes(event)) > _LONGEST_EVENT:
            return
        if self._queue.qsize() >= _PENDING:
            self._queue.get_nowait()
        self._queue.put_nowait(event)


class Events:
    """Events as they arrive; made by :meth:`Client.events`."""

    def __init__(self, client: Client, qmp: QMPClient, listener: EventListener) -> None:
        self._client = client
        self._qmp = qmp
        self._listener = listener

    def pending(self) -> list[Event]:
        """Return the events that have arrived and were not returned yet."""
        return [_event(message) for message in self._listener.clear()]

    async def next(self, timeout: float | None = None) -> Event:
        """Wait for the next event.

        :param timeout: seconds; None for no limit.
        :raises QmpError: no event in time, or the connection was lost.
        """
        got = asyncio.ensure_future(self._listener.get())
        lost = asyncio.ensure_future(self._qmp.runstate_changed())
        try:
            done, _ = await asyncio.wait(
                (got, lost), timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            if got in done:
                return _event(got.result())
        finally:
            got.cancel()
            lost.cancel()
        if lost in done or not self._client.connected:
            raise QmpError(f"{self._client.address}: the connection was lost")
        raise QmpError(f"{self._client.address}: no such event within {timeout:g} s")


def _protocol() -> QMPClient:
    qmp = QMPClient("svmstream", readbuflen=_LONGEST)
    qmp.events.event_filter = lambda _event: False  # it would keep every event for ever
    return qmp


def _late_answer(error: ConnectError) -> bool:
    # Instead of the greeting, an answer to the previous client, which did not wait for it.
    cause = error.exc
    return isinstance(cause, GreetingError) and isinstance(cause.exc, KeyError)


async def _end(qmp: QMPClient) -> Exception | None:
    # Disconnect; return the error that had ended the connection before, if any.
    try:
        async with asyncio.timeout(timeouts.DISCONNECT):
            await qmp.disconnect()
    except Exception as error:  # noqa: BLE001 - the cause, of any type
        return error
    return None


def _event(message: Message) -> Event:
    data = message.get("data", {})
    stamp = message.get("timestamp", {})
    seconds = answers.number(answers.mapping(stamp, "event"), "seconds") or 0
    micro = answers.number(answers.mapping(stamp, "event"), "microseconds") or 0
    return Event(str(message.get("event")), answers.mapping(data, "event"), seconds + micro / 1e6)


def _reason(error: Exception) -> str:
    if isinstance(error, EOFError):
        return "QEMU closed it"
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    if isinstance(error, ProtocolError):
        return f"{error.args[0]}"  # not the whole message
    if str(error).startswith(_TOO_LONG):
        return f"a message is longer than {_LONGEST >> 20} MiB"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or repr(error)
    return text[:_WORDS]
