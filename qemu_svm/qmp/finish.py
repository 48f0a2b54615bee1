"""What must come to its end, whoever is in a hurry."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work`` to its end, even if this task is cancelled meanwhile.

    :raises asyncio.CancelledError: it was; told when the work is done.  An error of the
        work itself comes first.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as stop:
            cancelled = stop
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
