"""The QMP client with a real QEMU, and with sockets that are none."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from qemu.qmp import ExecuteError

from qemu_svm.errors import CommandRefused, QmpError, Refused
from qemu_svm.qmp import Client, answers, guards, sync
from qemu_svm.qmp.answers import Migration, Status
from tests.qmp.vm import Proxy, Vm, running


def test_typed_answers(vm: Vm) -> None:
    async def ask() -> None:
        async with Client.connect(vm.address) as qmp:
            assert qmp.connected
            assert qmp.version >= answers.Version(5, 2)
            assert await qmp.status() == Status("running", running=True)
            assert (await qmp.migration()).status is None
            assert (await qmp.capabilities())["multifd"] is False
            assert isinstance((await qmp.parameters())["max-bandwidth"], int)
            assert "getfd" in await qmp.commands()
        assert not qmp.connected

    asyncio.run(ask())


def test_sync_face(vm: Vm) -> None:
    with sync.connect(vm.address) as qmp:
        assert qmp.status().running
        assert not qmp.migration().active
        assert qmp.execute("query-name") == {}
        assert qmp.version.major >= 5


def test_sync_has_all_that_the_client_has(vm: Vm) -> None:
    own = {"open", "connect", "close"}  # connect() opens
    for name, member in inspect.getmembers(Client):
        if name.startswith("_") or name in own:
            continue
        ours = getattr(sync.Connection, name)
        assert not inspect.iscoroutinefunction(ours)
        if inspect.iscoroutinefunction(member):
            assert inspect.signature(ours) == inspect.signature(member)
            assert ours.__doc__ == member.__doc__
    assert {"capture", "restore", "save_again", "watch", "address"} <= set(dir(sync.Connection))
    with sync.connect(vm.address) as qmp:
        assert qmp.connected
        assert str(qmp.address) == vm.address
        assert qmp.guard("migrate").running
        assert qmp.query("query-name") == {}
        assert "getfd" in qmp.commands()
        qmp.set_parameters({"max-bandwidth": 1 << 25})
        assert qmp.parameters()["max-bandwidth"] == 1 << 25
        qmp.set_parameters({"max-bandwidth": 1 << 27})
        with qmp.events("STOP", "RESUME") as events:
            qmp.stop()
            assert events.next(5).name == "STOP"
            qmp.cont()
            assert [event.name for event in events.pending()] == ["RESUME"]
            with pytest.raises(QmpError, match="no such event"):
                events.next(0.01)
        assert [sample.vm.running for sample in qmp.watch()] == [True]
    assert not qmp.connected
    qmp.close()
    for call in (qmp.status, lambda: next(qmp.watch()), lambda: qmp.run(qmp.client.status())):
        with pytest.raises(QmpError, match="was closed"):
            call()
    with pytest.raises(QmpError), qmp.events():
        pass


def test_sync_in_an_event_loop(vm: Vm) -> None:
    async def wrong() -> None:
        sync.connect(vm.address)

    with pytest.raises(QmpError, match="whose event loop runs"):
        asyncio.run(wrong())


def test_refusal_keeps_its_cause(vm: Vm) -> None:
    with sync.connect(vm.address) as qmp:
        with pytest.raises(CommandRefused) as caught:
            qmp.execute("no-such-command")
        assert caught.value.error_class == "CommandNotFound"
        assert isinstance(caught.value.__cause__, ExecuteError)
        assert qmp.status().running


def test_tcp(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (
        running(tmp_path, "-qmp", f"tcp:127.0.0.1:{port},server=on,wait=off"),
        sync.connect(f"127.0.0.1:{port}") as qmp,
    ):
        assert qmp.status().running
        assert not qmp.can_pass
        with pytest.raises(QmpError, match="TCP"):
            qmp.getfd(0)


def test_passing_descriptors(vm: Vm) -> None:
    reader, writer = os.pipe()
    try:
        with sync.connect(vm.address) as qmp:
            one, two = qmp.getfd(writer), qmp.getfd(writer)
            assert one != two
            qmp.execute("closefd", {"fdname": one})
            number = qmp.add_fd(writer)
            assert [one["fdset-id"] for one in qmp.execute("query-fdsets")] == [number]
            qmp.execute("remove-fd", {"fdset-id": number})
    finally:
        os.close(reader)
        os.close(writer)


def test_second_client_is_told_why(vm: Vm) -> None:
    with sync.connect(vm.address):
        with pytest.raises(QmpError, match="one client at a time") as caught:
            sync.connect(vm.address, connect_timeout=0.3)
        assert isinstance(caught.value.__cause__, TimeoutError)


@contextmanager
def server(folder: Path, says: bytes) -> Iterator[str]:
    path = folder / "fake"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(says)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"unix:{path}"
        thread.join(5)


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"\xff\xfe\n",
        b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ",
        b"{}\n",
        b'{"QMP": 3}\n',
        b'{"QMP": {"version": {"qemu": "7"}, "capabilities": []}}\n{"return": {}}\n',
        b'{"QMP": {"version": {}, "capabilities": []}}\n{"return": {}}\n',
        b'{"QMP": {"version": {}, "capabilities": []}}\n{"error": {}}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_not_a_qmp_socket(says: bytes, tmp_path: Path) -> None:
    with server(tmp_path, says) as address, pytest.raises(QmpError):
        sync.connect(address, connect_timeout=5.0)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(QmpError, match="no such socket"):
        sync.connect(f"unix:{tmp_path}/none")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/dead")
    with pytest.raises(QmpError, match="nobody listens"):
        sync.connect(f"unix:{tmp_path}/dead")
    for host in ("host.invalid", "host..invalid", "x" * 70):
        with pytest.raises(QmpError, match="cannot connect"):
            sync.connect(f"tcp:{host}:1")


def test_a_killed_qemu(tmp_path: Path) -> None:
    with running(tmp_path) as machine, sync.connect(machine.address) as qmp:
        machine.kill()
        with pytest.raises(QmpError, match="lost") as caught:
            qmp.execute("query-status")
        assert caught.value.__cause__ is not None
        with pytest.raises(QmpError):
            qmp.execute("query-status")


def test_a_lost_line_is_mended_for_questions_only(vm: Vm, tmp_path: Path) -> None:
    proxy = Proxy(vm.socket, tmp_path)

    async def ask() -> None:
        async with Client.connect(f"unix:{proxy.path}") as qmp:
            proxy.cut()
            with pytest.raises(QmpError, match="lost"):
                await qmp.execute("stop")
            with pytest.raises(QmpError, match="not connected"):
                await qmp.execute("stop")
            answer = await qmp.query("query-status", within=5)
            assert answer["running"]
            proxy.cut()
            assert answers.status(await qmp.query("query-status", within=5)).running

    try:
        asyncio.run(ask())
        assert proxy.connections == 3
    finally:
        proxy.close()


def test_events(vm: Vm) -> None:
    async def ask() -> None:
        async with Client.connect(vm.address) as qmp:
            async with qmp.events("STOP", "RESUME") as events:
                await qmp.stop()
                await qmp.cont()
                assert [(await events.next(5)).name for _ in range(2)] == ["STOP", "RESUME"]
                with pytest.raises(QmpError, match="no such event"):
                    await events.next(0.05)
            async with qmp.events() as events:
                await qmp.close()
                with pytest.raises(QmpError, match="lost"):
                    await events.next(5)

    asyncio.run(ask())


def test_guards_with_a_real_guest(vm: Vm, tmp_path: Path) -> None:
    async def ask(address: str, command: str) -> Status:
        async with Client.connect(address) as qmp:
            return await qmp.guard(command)

    assert asyncio.run(ask(vm.address, "migrate")).running
    with pytest.raises(Refused, match="does not wait for a stream"):
        asyncio.run(ask(vm.address, "migrate-incoming"))
    with running(tmp_path, "-incoming", "defer") as waiting:
        assert asyncio.run(ask(waiting.address, "migrate-incoming")).state == "inmigrate"
        with pytest.raises(Refused, match="itself waiting for a stream"):
            asyncio.run(ask(waiting.address, "migrate"))


def test_guards_know_every_state_that_qemu_has(vm: Vm) -> None:
    with sync.connect(vm.address) as qmp:
        schema = qmp.execute("query-qmp-schema")
    enums = [set(one["values"]) for one in schema if one["meta-type"] == "enum"]
    (states,) = [one for one in enums if {"inmigrate", "postmigrate"} <= one]
    assert states <= guards.STATES
    (migration,) = [one for one in enums if {"setup", "cancelling"} <= one]
    assert {"none", *answers.ENDED} <= migration
    under_way = migration - {"none", *answers.ENDED}
    assert all(Migration(status=state).active for state in {*under_way, "failing"})
    assert not any(Migration(status=state).active for state in ("none", None, *answers.ENDED))


@pytest.mark.parametrize("state", sorted(guards.STATES))
def test_a_guard_says_what_to_do(state: str) -> None:
    for command, guard in guards.GUARDS.items():
        if state in guard.states:
            guards.check(command, Status(state, running=False), Migration())
            with pytest.raises(Refused, match="already in progress") if guard.idle else _fine():
                guards.check(command, Status(state, running=False), Migration(status="active"))
        else:
            with pytest.raises(Refused) as caught:
                guards.check(command, Status(state, running=False), Migration())
            assert caught.value.hint


@contextmanager
def _fine() -> Iterator[None]:
    yield


@pytest.mark.parametrize("answer", [None, [], 3, "x", {"status": 3}, {"ram": []}])
def test_answers_of_other_types(answer: object) -> None:
    read = (
        *(answers.status, answers.migration, answers.version, answers.capabilities),
        answers.commands,
    )
    for function in read:
        try:
            json.dumps(str(function(answer)))
        except QmpError:
            continue


def test_a_line_that_is_lost_while_a_file_is_passed(
    vm: Vm, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_fd: int) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    async def ask() -> None:
        async with Client.connect(vm.address) as qmp:
            monkeypatch.setattr(qmp._running(), "send_fd_scm", gone)
            with pytest.raises(QmpError, match="the connection was lost"):
                await qmp.add_fd(0)

    asyncio.run(ask())
