"""The same without an event loop: blocking methods over the asyncio core.

::

    with sync.connect("unix:/run/vm.qmp") as qmp:
        print(qmp.status())
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from qemu_svm.errors import QmpError
from qemu_svm.qmp import client as core
from qemu_svm.qmp import timeouts
from qemu_svm.qmp.address import Address
from qemu_svm.qmp.answers import Event, Version
from qemu_svm.qmp.capture import capture
from qemu_svm.qmp.client import Client
from qemu_svm.qmp.restore import restore, save_again
from qemu_svm.qmp.watch import watch

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _blocking(
    work: Callable[Concatenate[Client, _P], Coroutine[Any, Any, _T]],
) -> Callable[Concatenate[Connection, _P], _T]:
    # The same as a method of Connection: a coroutine of the client runs to its end.
    @functools.wraps(work)
    def method(self: Connection, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self.run(work(self.client, *args, **kwargs))

    return method


def _iterating(
    work: Callable[Concatenate[Client, _P], AsyncGenerator[_T, None]],
) -> Callable[Concatenate[Connection, _P], Iterator[_T]]:
    # The same for a generator.
    @functools.wraps(work)
    def method(self: Connection, /, *args: _P.args, **kwargs: _P.kwargs) -> Iterator[_T]:
        items = work(self.client, *args, **kwargs)
        try:
            while item := self.run(_next(items)):
                yield item[0]
        finally:
            self.run(_close(items))

    return method


async def _next(items: AsyncGenerator[_T, None]) -> tuple[_T] | None:
    async for item in items:
        return (item,)
    return None


async def _close(items: AsyncGenerator[Any, None]) -> None:
    await items.aclose()


class Connection:
    """A connected client, made by :func:`connect`; :attr:`client` is the asynchronous one.

    Its methods are those of :class:`Client`, and the functions of this room that take
    a client.  It belongs to one thread, in which no event loop may run.

    :raises QmpError: see :meth:`Client.open`; an event loop runs in this thread.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self._runner: asyncio.Runner | None = asyncio.Runner()
        try:
            self.run(client.open())
        except BaseException:
            self._end()
            raise

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the connection's event loop and return its result.

        :raises QmpError: the connection was closed, or an event loop runs in this thread.
        """
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if self._runner is None or running is not None:
            work.close()
            if running is None:
                raise QmpError(f"{self.client.address}: the connection was closed")
            raise QmpError(
                "a blocking call in a thread whose event loop runs",
                hint="use qemu_svm.qmp.Client there",
            )
        return self._runner.run(work)

    def close(self) -> None:
        """Close the connection; never fails, and may be called again."""
        if self._runner is not None:
            try:
                self.run(self.client.close())
            finally:
                self._end()

    def _end(self) -> None:
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    @property
    def address(self) -> Address:
        """The address of the QMP socket."""
        return self.client.address

    @property
    def connected(self) -> bool:
        """See :attr:`Client.connected`."""
        return self.client.connected

    @property
    def version(self) -> Version:
        """See :attr:`Client.version`."""
        return self.client.version

    @property
    def can_pass(self) -> bool:
        """See :attr:`Client.can_pass`."""
        return self.client.can_pass

    execute = _blocking(Client.execute)
    query = _blocking(Client.query)
    guard = _blocking(Client.guard)
    reopen = _blocking(Client.reopen)
    status = _blocking(Client.status)
    migration = _blocking(Client.migration)
    capabilities = _blocking(Client.capabilities)
    parameters = _blocking(Client.parameters)
    commands = _blocking(Client.commands)
    set_capabilities = _blocking(Client.set_capabilities)
    set_parameters = _blocking(Client.set_parameters)
    cont = _blocking(Client.cont)
    stop = _blocking(Client.stop)
    getfd = _blocking(Client.getfd)
    add_fd = _blocking(Client.add_fd)
    capture = _blocking(capture)
    restore = _blocking(restore)
    save_again = _blocking(save_again)
    watch = _iterating(watch)

    @contextmanager
    def events(self, *names: str) -> Iterator[Events]:
        """See :meth:`Client.events`."""
        context = self.client.events(*names)
        events = self.run(context.__aenter__())
        try:
            yield Events(self, events)
        finally:
            self.run(context.__aexit__(None, None, None))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Events:
    """Events as they arrive; made by :meth:`Connection.events`."""

    def __init__(self, connection: Connection, events: core.Events) -> None:
        self._connection = connection
        self._events = events

    def pending(self) -> list[Event]:
        """See :meth:`qemu_svm.qmp.client.Events.pending`."""
        return self._events.pending()

    def next(self, timeout: float | None = None) -> Event:
        """See :meth:`qemu_svm.qmp.client.Events.next`."""
        return self._connection.run(self._events.next(timeout))


def connect(
    address: str | Address,
    *,
    timeout: float = timeouts.ANSWER,
    connect_timeout: float = timeouts.CONNECT,
) -> Connection:
    """Connect to a QMP socket; parameters as for :class:`Client`.

    :raises QmpError: see :meth:`Client.open`.
    """
    return Connection(Client(address, timeout=timeout, connect_timeout=connect_timeout))
