"""Watching migrations of a real QEMU that somebody else drives."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.errors import QmpError
from qemu_svm.qmp import Client, Migration, Status
from qemu_svm.qmp.watch import Pace, Rates, Sample, watch
from tests.qmp.vm import Proxy, Vm, running

SINK = "exec:cat >/dev/null"
ENDLESS = 4096  # bytes a second


@contextlib.asynccontextmanager
async def two(vm: Vm, folder: Path) -> AsyncIterator[tuple[Client, Client]]:
    """Somebody who drives QEMU, and us, each with a socket of their own."""
    async with (
        Client.connect(vm.address) as driver,
        Client.connect(f"unix:{folder}/second.qmp") as ours,
    ):
        yield driver, ours


def two_sockets(folder: Path) -> tuple[str, str]:
    return "-qmp", f"unix:{folder}/second.qmp,server=on,wait=off"


async def migrate(driver: Client, uri: str = SINK, **parameters: object) -> None:
    await driver.set_parameters({"max-bandwidth": 600_000} | parameters)
    await driver.execute("migrate", {"uri": uri})


async def seen(
    ours: Client, into: list[Sample] | None = None, *, interval: float = 0.05, **options: Any
) -> list[Sample]:
    samples = [] if into is None else into
    async for sample in watch(ours, interval=interval, **options):
        samples.append(sample)
    return samples


def test_every_way_to_end(tmp_path: Path) -> None:
    async def scenario(vm: Vm) -> None:
        async with two(vm, tmp_path) as (driver, ours):
            # None yet.
            (only,) = await seen(ours)
            assert only.migration.status is None
            assert not only.migration.ended
            # Failed, with QEMU's reason.
            await migrate(driver, "exec:exit 1")
            last = (await seen(ours))[-1]
            assert last.migration.status == "failed"
            assert last.migration.error
            assert last.vm == Status("running", running=True)
            # Waited for, and cancelled by somebody else.
            samples: list[Sample] = []
            waiting = asyncio.ensure_future(seen(ours, samples, wait=True))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            await migrate(driver, **{"max-bandwidth": ENDLESS})
            while samples[-1].migration.status != "active":
                await asyncio.sleep(0.01)
                assert not waiting.done()
            await driver.execute("migrate_cancel")
            await waiting
            assert samples[0].migration.status == "failed"
            assert samples[-1].migration.status == "cancelled"
            # Completed.
            await migrate(driver)
            samples = await seen(ours)
            assert samples[-1].migration.status == "completed"
            assert samples[-1].vm.state == "postmigrate"
            sent = [one.migration.transferred or 0 for one in samples]
            assert sent == sorted(sent)
            assert [one.migration.ended for one in samples] == [False] * (len(samples) - 1) + [True]

    with running(tmp_path, *two_sockets(tmp_path), memory=64) as vm:
        asyncio.run(scenario(vm))


def test_rates(tmp_path: Path) -> None:
    async def scenario(vm: Vm) -> None:
        async with two(vm, tmp_path) as (driver, ours):
            await migrate(driver, **{"max-bandwidth": 20_000})
            samples: list[Sample] = []
            watching = asyncio.ensure_future(seen(ours, samples))
            while not any(one.rates.wire and one.rates.pages and one.eta for one in samples):
                await asyncio.sleep(0.05)
                assert not watching.done()
            await driver.execute("migrate_cancel")
            await watching

    with running(tmp_path, *two_sockets(tmp_path), memory=64) as vm:
        asyncio.run(scenario(vm))


def test_nothing_is_changed(tmp_path: Path) -> None:
    async def scenario(vm: Vm) -> None:
        async with two(vm, tmp_path) as (driver, ours):
            before = await driver.capabilities(), await driver.parameters(), await driver.status()
            await seen(ours)
            after = await driver.capabilities(), await driver.parameters(), await driver.status()
            assert before == after

    with running(tmp_path, *two_sockets(tmp_path)) as vm:
        asyncio.run(scenario(vm))


def test_events_are_followed_at_once(tmp_path: Path) -> None:
    async def scenario(vm: Vm) -> list[Sample]:
        async with two(vm, tmp_path) as (driver, ours):
            await driver.set_capabilities({"events": True})
            await migrate(driver, **{"max-bandwidth": 1 << 30})
            # A minute between two questions: only events can make it end in time.
            return await seen(ours, interval=60)

    with running(tmp_path, *two_sockets(tmp_path)) as vm:
        samples = asyncio.run(asyncio.wait_for(scenario(vm), 20))
    assert samples[-1].migration.ended


def test_a_lost_line(tmp_path: Path) -> None:
    with running(tmp_path, memory=64) as vm:
        proxy = Proxy(vm.socket, tmp_path)

        async def scenario() -> None:
            async with Client.connect(f"unix:{proxy.path}") as ours:
                await migrate(ours, **{"max-bandwidth": ENDLESS})
                samples = watch(ours, interval=0.05)
                while (await anext(samples)).migration.status != "active":
                    pass
                proxy.cut()
                with pytest.raises(
                    QmpError, match="lost; the last known state of the migration is active"
                ):
                    async for _ in samples:
                        pass

        try:
            asyncio.run(scenario())
        finally:
            proxy.close()


def test_a_killed_qemu(tmp_path: Path) -> None:
    async def scenario(vm: Vm) -> None:
        async with Client.connect(vm.address) as ours:
            samples = watch(ours, interval=0.05, wait=True)
            await anext(samples)
            vm.kill()
            with pytest.raises(QmpError, match="lost"):
                await anext(samples)

    with running(tmp_path) as vm:
        asyncio.run(scenario(vm))


def test_a_qemu_that_leaves_when_it_is_done(tmp_path: Path) -> None:
    async def scenario(vm: Vm) -> list[Sample]:
        async with two(vm, tmp_path) as (driver, ours):
            await driver.set_capabilities({"events": True})
            samples: list[Sample] = []
            # Only events make it ask, so that QEMU is gone before the next question.
            watching = asyncio.ensure_future(seen(ours, samples, interval=60, wait=True))
            await migrate(driver, **{"max-bandwidth": ENDLESS})
            while not any(one.migration.active for one in samples):
                await asyncio.sleep(0.01)
                assert not watching.done()
            async with driver.events("MIGRATION") as events:
                await driver.set_parameters({"max-bandwidth": 1 << 30})
                while (await events.next(30)).data["status"] != "completed":
                    pass
                vm.kill()
            await watching
            return samples

    for _ in range(10):
        try:
            with running(tmp_path, *two_sockets(tmp_path)) as vm:
                samples = asyncio.run(scenario(vm))
            break
        except QmpError as error:  # its last word was lost with the line
            if "the last known state of the migration" not in str(error):
                raise
    assert samples[-1].migration.status == "completed"


def test_the_destination(tmp_path: Path) -> None:
    async def scenario(source: Vm, destination: Vm) -> list[Sample]:
        async with (
            Client.connect(source.address) as driver,
            Client.connect(destination.address) as ours,
        ):
            socket = f"unix:{tmp_path}/stream"
            await ours.execute("migrate-incoming", {"uri": socket})
            await migrate(driver, socket)
            while (await ours.migration()).status is None:  # it has not heard of it yet
                await asyncio.sleep(0.005)
            return await seen(ours)

    with (
        running(tmp_path, memory=32) as source,
        running(tmp_path, "-incoming", "defer", memory=32, name="to") as destination,
    ):
        samples = asyncio.run(scenario(source, destination))
    assert samples[-1].migration.status == "completed"
    assert samples[0].vm.state == "inmigrate"


def sample(at: float, **migration: Any) -> Sample:
    found = Migration(status="active", page_size=4096, total=1 << 30, **migration)
    return Sample(at, "poll", Status("running", running=True), found, {}, {}, {})


def test_pace() -> None:
    pace = Pace()
    first = pace.rate(sample(10, transferred=0, normal=0, zero=0, remaining=1 << 20))
    assert first.rates == Rates()
    assert first.eta is None
    # 100 pages a second are dealt with, 20 of them on the wire; 60 are written anew.
    later = pace.rate(
        sample(12, transferred=40 * 4096, normal=40, zero=160, remaining=40 * 4096, dirty_rate=60)
    )
    assert later.rates == Rates(20 * 4096, 100 * 4096, 60 * 4096)
    assert later.eta == 1.0
    assert not later.rates.endless
    busy = pace.rate(
        sample(14, transferred=80 * 4096, normal=80, zero=320, remaining=4096, dirty_rate=100)
    )
    assert busy.eta is None
    assert busy.rates.endless
    # A guest that stands writes nothing, whatever QEMU still says.
    stands = replace(
        sample(15, transferred=90 * 4096, normal=90, zero=330, remaining=4096, dirty_rate=100),
        vm=Status("finish-migrate", running=False),
    )
    assert pace.rate(stands).rates.dirty is None
    assert not pace.rate(stands).rates.endless
    # Another migration counts from the beginning.
    again = pace.rate(sample(16, transferred=4096, normal=1, zero=0, remaining=4096))
    assert again.rates.wire is None
