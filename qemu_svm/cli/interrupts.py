"""Ctrl-C and SIGTERM for the verbs that hold something in their hands."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine; a signal cancels it, and its clean-up runs to the end.

    After the first one signals are ignored: every step of a clean-up has a
    limit of its own, and an impatient second signal must not spoil it.

    :raises KeyboardInterrupt: when a signal ended it.
    """
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    def interrupt(_number: int, _frame: object) -> None:
        if not running:
            raise KeyboardInterrupt
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        loop, task = running[0]
        if not loop.is_closed():
            loop.call_soon_threadsafe(task.cancel)

    async def main() -> _T:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        return await work

    # Not the loop's own handlers: they are gone before the loop is.
    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        result = asyncio.run(main())
    except (asyncio.CancelledError, KeyboardInterrupt) as error:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        work.close()
        raise KeyboardInterrupt from error
    except BaseException:
        _back(before)
        raise
    _back(before)
    return result


def _back(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
