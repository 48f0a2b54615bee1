"""Items done by the workers of a Dask cluster.

What a worker lacks is its own: a worker that answers with an error gets no more items, and the
others do its work.  The run fails when no worker is left.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from qemu_svm import __version__
from qemu_svm.errors import EnvironmentFault, SvmStreamError
from qemu_svm.optional import optional
from qemu_svm.work.items import Lost, R, T

INSTALL = "pip install 'qemu-svm[survey]'"
"""What has all that a worker needs."""

_AHEAD = 3
"""Items that wait for each thread of the workers."""

_LOOK_SECONDS = 1.0
"""Between two looks at which workers there are."""

_PATIENCE_SECONDS = 5.0
"""Without a worker, until that is said."""

ANSWER_SECONDS = 10.0
"""For the scheduler to answer."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Fault:
    # Why a worker could not do an item.
    worker: str
    error: SvmStreamError


def _done(work: Callable[[T], R], item: T, version: str) -> R | _Fault:
    # Runs on a worker.
    from distributed import get_worker

    address = str(get_worker().address)
    if version != __version__:
        return _Fault(address, EnvironmentFault(
            f"it has svmstream {__version__}, and here is {version}",
            hint=f"pip install 'qemu-svm[survey]=={version}'",
        ))  # fmt: skip
    try:
        return work(item)
    except SvmStreamError as error:
        return _Fault(address, error)


def _check(address: str) -> None:
    # A client that was made for an address that is none is left half started.
    from distributed.comm.addressing import parse_address, parse_host_port

    scheme, rest = parse_address(address)
    if scheme in ("tcp", "tls"):
        _, port = parse_host_port(rest)
        if not 0 < port < 1 << 16:
            raise ValueError(f"port {port} is not in 1 to 65535")


class Cluster:
    """The workers of a Dask cluster.

    :param address: of the scheduler, such as ``tcp://10.0.0.1:8786``, or a file that it wrote.
    :param say: is told, once, what a worker lacks, and that there is none.
    :raises EnvironmentFault: distributed is not installed, or the scheduler does not answer.
    """

    def __init__(
        self, address: str, *, timeout: float | None = None, say: Say = lambda _words: None
    ) -> None:
        self._distributed: Any = optional("distributed", "--scheduler", install=INSTALL)
        self._address = address
        self._say = say
        self._faults: dict[str, SvmStreamError] = {}
        self._alive: dict[str, int] = {}
        self._looked = float("-inf")
        self._alone_since: float | None = None
        for name in ("distributed", "distributed.client"):  # what matters comes as an error
            logging.getLogger(name).setLevel(logging.CRITICAL)
        file = {"scheduler_file": address} if os.path.isfile(address) else {"address": address}
        try:
            if "address" in file:
                _check(address)
            self._client = self._distributed.Client(**file, timeout=timeout or ANSWER_SECONDS)
        except (OSError, ValueError, ImportError) as error:
            raise EnvironmentFault(
                f"no Dask scheduler answers at '{address}': {error}",
                hint="start one: dask scheduler; and workers: dask worker ADDRESS",
            ) from error

    def close(self) -> None:
        """Leave the cluster; what was submitted is cancelled."""
        self._client.close()

    def results(
        self, work: Callable[[T], R], items: Iterable[T]
    ) -> Generator[tuple[T, R | Lost], None, None]:
        """Yield each item with its result; what a worker that dies had is done by another.

        :raises SvmStreamError: every worker failed; the last one's error.
        :raises EnvironmentFault: the scheduler is gone.
        """
        waiting = iter(items)
        sent: dict[Any, tuple[T, list[str]]] = {}
        more = True

        def send(item: T) -> None:
            # Anybody does it, until somebody is known to fail.
            usable = list(self._usable()) if self._faults else []
            future = self._client.submit(
                _done, work, item, __version__, pure=False, retries=3, workers=usable or None,
            )  # fmt: skip
            sent[future] = item, usable

        try:
            while True:
                threads = max(1, sum(self._usable().values()))
                while more and len(sent) < threads * _AHEAD:
                    try:
                        send(next(waiting))
                    except StopIteration:
                        more = False
                if not sent:
                    return
                for future in self._finished(list(sent)):
                    item, _ = sent.pop(future)
                    answer = self._answer(future)
                    if isinstance(answer, _Fault):
                        self._exclude(answer)
                        send(item)
                    else:
                        yield item, answer
                for future, (item, allowed) in list(sent.items()):
                    if allowed and not set(allowed) & set(self._usable()):
                        # They died, and a new one may have come.
                        self._client.cancel([future])
                        del sent[future]
                        send(item)
        except (CancelledError, OSError) as error:
            raise EnvironmentFault(f"the Dask scheduler at '{self._address}' is gone") from error
        finally:
            with suppress(CancelledError, OSError):
                self._client.cancel(list(sent))

    def _usable(self) -> dict[str, int]:
        # Addresses of workers that have not failed, with the number of their threads.
        now = time.monotonic()
        if now - self._looked > _LOOK_SECONDS:
            self._looked = now
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
            self._alive = {address: one["nthreads"] for address, one in workers.items()}
            if self._alive:
                self._alone_since = None
            elif self._alone_since is None:
                self._alone_since = now
        usable = {one: many for one, many in self._alive.items() if one not in self._faults}
        if self._alive and not usable:
            raise next(reversed(self._faults.values()))
        return usable

    def _finished(self, futures: list[Any]) -> set[Any]:
        # Those that ended, as soon as one did; none if none does for a while.
        try:
            done = self._distributed.wait(futures, _LOOK_SECONDS, "FIRST_COMPLETED").done
        except TimeoutError:
            done = set()
        if self._alone_since and time.monotonic() - self._alone_since > _PATIENCE_SECONDS:
            self._alone_since = float("inf")  # it is said once
            self._say(f"no worker is there: dask worker {self._client.scheduler.address}")
        return set(done)

    @staticmethod
    def _answer(future: Any) -> Any:
        error = future.exception()
        if error is None:
            return future.result()
        if isinstance(error, ImportError):
            raise EnvironmentFault(
                f"a worker cannot do this: {error}", hint=f"there: {INSTALL}"
            ) from error
        # Its workers have died too often.
        return Lost(f"no worker could do it: {error}")

    def _exclude(self, fault: _Fault) -> None:
        if fault.worker in self._faults:
            return
        self._faults[fault.worker] = fault.error
        self._say(f"{fault.worker} does nothing: {fault.error}")
        self._usable()
