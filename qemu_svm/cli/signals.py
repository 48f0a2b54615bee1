"""SIGINT, SIGTERM and SIGHUP, for verbs that have something to undo."""

from __future__ import annotations

import signal
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

_T = TypeVar("_T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def interrupt_on_termination() -> None:
    """Let SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does, from now on."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def run(work: Coroutine[Any, Any, _T], *, last: bool = False) -> _T:
    """Run a coroutine; a signal cancels it, and its clean-up runs to the end.

    After the first one signals are ignored: every step of a clean-up has a timeout, and
    a second signal must not interrupt it.

    :param last: nothing that could be undone follows: signals stay ignored, so that the
        result is printed.
    :raises KeyboardInterrupt: a signal cancelled it.
    """
    import asyncio

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
        loop.set_exception_handler(_except_cancellations)
        running.append((loop, task))
        return await work

    # Not by the loop's own handlers, which are removed before the loop is closed.
    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        result = asyncio.run(main())
    except (asyncio.CancelledError, KeyboardInterrupt) as error:
        _ignore()
        work.close()
        raise KeyboardInterrupt from error
    except BaseException:
        _restore(before)
        raise
    if last:
        _ignore()
    else:
        _restore(before)
    return result


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _ignore() -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _except_cancellations(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # A QMP connection that ends while it is cancelled leaves futures that nobody awaits.
    import asyncio

    if not isinstance(context.get("exception"), asyncio.CancelledError):
        loop.default_exception_handler(context)
