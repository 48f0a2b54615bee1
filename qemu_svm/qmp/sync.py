"""The same without an event loop: one-line methods over the asyncio core.

::

    with sync.connect("unix:/run/vm.qmp") as qmp:
        print(qmp.status())
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu_svm.qmp.address import Address
from qemu_svm.qmp.answers import Migration, Status, Version
from qemu_svm.qmp.capture import Captured, capture
from qemu_svm.qmp.client import Client
from qemu_svm.qmp.features import Options
from qemu_svm.qmp.restore import Restored, restore
from qemu_svm.source import Source
from qemu_svm.stream import Stream

_T = TypeVar("_T")


class Connection:
    """A connected client; :attr:`client` is the asynchronous one."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._runner = asyncio.Runner()
        try:
            self.run(client.open())
        except BaseException:
            self._runner.close()
            raise

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run any coroutine of this room on the connection's loop."""
        return self._runner.run(work)

    def close(self) -> None:
        """End the connection."""
        try:
            self.run(self.client.close())
        finally:
            self._runner.close()

    def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """See :meth:`Client.execute`."""
        return self.run(self.client.execute(command, arguments))

    def status(self) -> Status:
        """See :meth:`Client.status`."""
        return self.run(self.client.status())

    def migration(self) -> Migration:
        """See :meth:`Client.migration`."""
        return self.run(self.client.migration())

    def capture(
        self, path: str, options: Options | None = None, *, replace: bool = False
    ) -> Captured:
        """See :func:`qemu_svm.qmp.capture.capture`."""
        return self.run(capture(self.client, path, options, replace=replace))

    def restore(self, stream: Stream, channels: Sequence[Source] = ()) -> Restored:
        """See :func:`qemu_svm.qmp.restore.restore`."""
        return self.run(restore(self.client, stream, channels))

    @property
    def version(self) -> Version:
        """See :attr:`Client.version`."""
        return self.client.version

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def connect(address: str | Address, **options: float) -> Connection:
    """Connect; parameters as for :class:`Client`.

    :raises QmpError: see :meth:`Client.open`.
    """
    return Connection(Client(address, **options))
