"""Undoing what a capture changed: it runs to completion even if it is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from qemu_svm.qmp.session import finish


async def _work(done: list[str], *, fails: bool = False) -> str:
    await asyncio.sleep(0.02)
    done.append("done")
    if fails:
        raise ValueError("itself")
    return "result"


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("times", [0, 1, 3])
def test_cancelled_meanwhile(times: int, fails: bool) -> None:
    async def scene() -> None:
        done: list[str] = []
        task = asyncio.ensure_future(finish(_work(done, fails=fails)))
        for _ in range(times):
            await asyncio.sleep(0.002)
            task.cancel()
        await asyncio.wait([task])
        assert done == ["done"]
        if fails:
            assert isinstance(task.exception(), ValueError)
        elif times:
            assert task.cancelled()
        else:
            assert task.result() == "result"

    asyncio.run(scene())
