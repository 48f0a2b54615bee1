"""All streams of a survey, judged by processes of this host or by a Dask cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from typing import Any, Protocol

from qemu_svm.errors import EnvironmentFault
from qemu_svm.optional import optional
from qemu_svm.survey.find import INSTALL
from qemu_svm.survey.judge import Judged, judge
from qemu_svm.survey.row import Question, Row, State, Summary, Survey
from qemu_svm.survey.store import Store

CHUNK = 8
"""Inputs that are sent to a process at once."""

_AHEAD = 3
"""Chunks that wait for each process."""

_COMMIT_SECONDS = 1.0

Progress = Callable[[int, int], None]
"""Called with how many inputs are done, and of how many."""


class Runner(Protocol):
    """Whatever judges chunks of inputs, in any order."""

    def results(self, chunks: Iterable[list[str]], question: Question) -> Generator[Judged]:
        """Yield each chunk with its rows when they are there."""


def survey(
    paths: Iterable[str],
    question: Question,
    store: Store,
    *,
    runner: Runner | None = None,
    progress: Progress | None = None,
) -> Survey:
    """Judge streams; the rows are in the store then.

    :param runner: by default a process for each processor.
    :raises SvmStreamError: the inputs cannot be found.
    """
    total, done = store.add(paths)
    last = time.monotonic()
    if progress is not None:
        progress(done, total)
    runner = runner or Processes()
    size = min(CHUNK, max(1, (total - done) // 64))
    with closing(runner.results(store.todo(size), question)) as results:
        for judged in results:
            store.put(judged)
            done += len(judged)
            if progress is not None:
                progress(done, total)
            if time.monotonic() - last > _COMMIT_SECONDS:
                store.commit()
                last = time.monotonic()
    store.commit()
    summary = Summary()
    for row in store.rows():
        summary.add(row)
    return Survey(question, summary, store.rows, store.continued)


class Processes:
    """Processes of this host.

    :param count: how many; by default one for each processor.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or len(os.sched_getaffinity(0))

    def results(self, chunks: Iterable[list[str]], question: Question) -> Generator[Judged]:
        """Yield each chunk with its rows; an input that kills a process gets a row that says so."""
        waiting = iter(chunks)
        while True:
            pool = ProcessPoolExecutor(self.count, initializer=_ignore_interrupts)
            running: dict[Future[Judged], list[str]] = {}
            try:
                broken = yield from self._run(pool, running, waiting, question)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                _end(pool)
                raise
            pool.shutdown()
            if not broken:
                break
            for path in [path for chunk in running.values() for path in chunk]:
                yield [(path, _alone(path, question))]

    def _run(
        self,
        pool: ProcessPoolExecutor,
        running: dict[Future[Judged], list[str]],
        waiting: Iterator[list[str]],
        question: Question,
    ) -> Generator[Judged, None, bool]:
        # Returns whether a process died; ``running`` then holds what was lost.
        while True:
            while len(running) < self.count * _AHEAD and (chunk := next(waiting, None)):
                try:
                    running[pool.submit(judge, chunk, question)] = chunk
                except BrokenProcessPool:
                    lost: Future[Judged] = Future()
                    running[lost] = chunk
                    return True
            if not running:
                return False
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                try:
                    judged = future.result()
                except BrokenProcessPool:
                    return True
                del running[future]
                yield judged


def _alone(path: str, question: Question) -> list[Row]:
    # In a process of its own, since one of several inputs has killed another.
    with ProcessPoolExecutor(1, initializer=_ignore_interrupts) as pool:
        try:
            return pool.submit(judge, [path], question).result()[0][1]
        except BrokenProcessPool:
            why = "the process that read it was killed: out of memory, or a bug in svmstream"
            return [Row(path, State.UNREADABLE, error=why)]


def _ignore_interrupts() -> None:
    # Ctrl-C is for the parent, which ends the processes.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):  # noqa: SLF001 - public since 3.14
        process.terminate()


class Cluster:
    """The workers of a Dask cluster.

    :param address: of the scheduler, such as ``tcp://10.0.0.1:8786``, or a file that it wrote.
    :raises EnvironmentFault: distributed is not installed, or the scheduler does not answer.
    """

    def __init__(self, address: str, *, timeout: float = 10) -> None:
        self._distributed: Any = optional("distributed", "--scheduler", install=INSTALL)
        file = {"scheduler_file": address} if os.path.isfile(address) else {"address": address}
        try:
            self._client = self._distributed.Client(**file, timeout=timeout)
        except (OSError, ValueError, ImportError) as error:
            raise EnvironmentFault(
                f"no Dask scheduler answers at '{address}': {error}",
                hint="start one: dask scheduler; and workers: dask worker ADDRESS",
            ) from error

    def close(self) -> None:
        """Leave the cluster; what was submitted is cancelled."""
        self._client.close()

    def results(self, chunks: Iterable[list[str]], question: Question) -> Generator[Judged]:
        """Yield each chunk with its rows; work of a worker that dies is done by another."""
        waiting = iter(chunks)
        known: dict[str, list[str]] = {}
        finished = self._distributed.as_completed([])
        try:
            while True:
                workers = max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))
                while len(known) < workers * _AHEAD and (chunk := next(waiting, None)):
                    future = self._client.submit(judge, chunk, question, pure=False, retries=3)
                    known[future.key] = chunk
                    finished.add(future)
                if not known:
                    return
                future = next(finished)
                yield self._judged(future, known.pop(future.key))
        finally:
            self._client.cancel(list(finished.futures))

    @staticmethod
    def _judged(future: Any, chunk: Sequence[str]) -> Judged:
        error = future.exception()
        if error is None:
            found: Judged = future.result()
            return found
        # Its workers have died too often.
        why = f"no worker could judge it: {error}"
        return [(path, [Row(path, State.UNREADABLE, error=why)]) for path in chunk]
