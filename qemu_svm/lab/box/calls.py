"""Calls from a thread into an asyncio event loop that runs in another thread."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from qemu_svm.errors import LabError

_T = TypeVar("_T")


def call(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on the loop, wait for it, and return its result.

    :raises LabError: the loop is closed, because the box was.  Errors of ``work`` are raised
        as they are.
    """
    if loop.is_closed():
        work.close()
        raise LabError("the box was closed")
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
