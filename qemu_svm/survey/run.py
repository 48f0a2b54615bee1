"""All streams of a survey, judged by whatever does its items."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from functools import partial

from qemu_svm.survey.judge import Judged, judge
from qemu_svm.survey.row import Question, Row, State, Summary, Survey
from qemu_svm.survey.store import Store
from qemu_svm.work.items import Lost, Runner
from qemu_svm.work.processes import Processes

CHUNK = 32
"""Inputs that are sent to a process at once."""

_COMMIT_SECONDS = 1.0

Progress = Callable[[int, int], None]
"""Called with how many inputs are done, and of how many."""


def survey(
    paths: Iterable[str],
    question: Question,
    store: Store,
    *,
    runner: Runner | None = None,
    progress: Progress | None = None,
    folder: str = "",
) -> Survey:
    """Judge streams; the rows are in the store then.

    :param runner: by default a process for each processor.
    :param folder: in which relative paths are meant, for a runner that works elsewhere.
    :raises SvmStreamError: the inputs cannot be found.
    """
    total, done = store.add(paths)
    last = time.monotonic()
    if progress is not None:
        progress(done, total)
    runner = runner or Processes()
    size = min(CHUNK, max(1, (total - done) // 64))
    with closing(
        _judged(store.todo(size), partial(judge, question=question, folder=folder), runner)
    ) as results:
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


def _judged(
    chunks: Iterable[list[str]], work: Callable[[list[str]], Judged], runner: Runner
) -> Generator[Judged, None, None]:
    # An input that nobody can judge has a row that says so; its neighbours have theirs.
    lost: list[str] = []
    with closing(runner.results(work, chunks)) as results:
        for chunk, judged in results:
            if isinstance(judged, Lost):
                lost += chunk
            else:
                yield judged
    with closing(runner.results(work, [[path] for path in lost])) as results:
        for (path,), judged in results:
            if isinstance(judged, Lost):
                yield [(path, [Row(path, State.UNREADABLE, error=judged.why)])]
            else:
                yield judged
