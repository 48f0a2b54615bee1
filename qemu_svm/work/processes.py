"""Items done by processes of this host."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from qemu_svm.work.items import Lost, R, T

_AHEAD = 3
"""Items that wait for each process."""

_KILLED = Lost("the process that did it was killed: out of memory, or a bug in svmstream")


class Processes:
    """Processes of this host.

    :param count: how many; by default one for each processor.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or len(os.sched_getaffinity(0))

    def results(
        self, work: Callable[[T], R], items: Iterable[T]
    ) -> Generator[tuple[T, R | Lost], None, None]:
        """Yield each item with its result; one that kills a process twice is lost."""
        waiting = iter(items)
        while True:
            pool = ProcessPoolExecutor(self.count, initializer=_begin)
            running: dict[Future[R], T] = {}
            try:
                broken = yield from self._run(pool, running, waiting, work)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                _end(pool)
                raise
            pool.shutdown()
            if not broken:
                break
            for item in running.values():
                yield item, _alone(work, item)

    def _run(
        self,
        pool: ProcessPoolExecutor,
        running: dict[Future[R], T],
        waiting: Iterator[T],
        work: Callable[[T], R],
    ) -> Generator[tuple[T, R | Lost], None, bool]:
        # Returns whether a process died; ``running`` then holds what was interrupted.
        more = True
        while True:
            while more and len(running) < self.count * _AHEAD:
                try:
                    item = next(waiting)
                except StopIteration:
                    more = False
                    break
                try:
                    running[pool.submit(work, item)] = item
                except BrokenProcessPool:
                    running[Future()] = item
                    return True
            if not running:
                return False
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                try:
                    result = future.result()
                except BrokenProcessPool:
                    return True
                yield running.pop(future), result


def _alone(work: Callable[[T], R], item: T) -> R | Lost:
    # In a process of its own, since one of several has killed another.
    with ProcessPoolExecutor(1, initializer=_begin) as pool:
        try:
            return pool.submit(work, item).result()
        except BrokenProcessPool:
            return _KILLED


def _begin() -> None:
    # Ctrl-C is for the parent, which ends the processes.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # what the parent had is never collected here


def _end(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):  # noqa: SLF001 - public since 3.14
        process.terminate()
