"""Ctrl-C and SIGTERM for the verbs that hold something in their hands."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(work: Coroutine[Any, Any, _T], *, last: bool = False) -> _T:
    """Run a coroutine; a signal cancels it, and its clean-up runs to the end.

    After the first one signals are ignored: every step of a clean-up has a
    limit of its own, and an impatient second signal must not spoil it.

    :param last: it was the verb's last work: a signal that comes when it is done
        is ignored, for all that is left is to say so.
    :raises KeyboardInterrupt: when a signal ended it.
    """
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []

    def interrupt(_number: int, _frame: object) -> None:
        if not running:
            raise KeyboardInterrupt
        _ignore()
        loop, task = running[0]
        if not loop.is_closed():
            loop.call_soon_threadsafe(task.cancel)

    async def main() -> _T:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_not_of_a_cancel)
        running.append((loop, task))
        return await work

    # Not the loop's own handlers: they are gone before the loop is.
    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        result = asyncio.run(main())
    except (asyncio.CancelledError, KeyboardInterrupt) as error:
        _ignore()
        work.close()
        raise KeyboardInterrupt from error
    except BaseException:
        _back(before)
        raise
    if last:
        _ignore()
    else:
        _back(before)
    return result


def _back(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _ignore() -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _not_of_a_cancel(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # A QMP connection that ends while it is cancelled leaves futures that nobody asks.
    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)
