"""A server that answers what no QEMU does: only our errors, and never a file that is not whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qemu_svm.errors import EnvironmentFault, QmpError, Refused, SvmStreamError
from qemu_svm.qmp import sync, timeouts
from qemu_svm.qmp.capture import compressed_name
from qemu_svm.qmp.client import Client
from tests.conftest import Run
from tests.support import builders

Answer = Callable[[str], bytes | None]
GREETING = (
    b'{"QMP": {"version": {"qemu": {"major": 9, "minor": 0, "micro": 0}}, "capabilities": []}}\n'
)
REFUSED = b'{"class": "GenericError"'
SANE: dict[str, Any] = {
    "query-status": {"status": "running", "running": True},
    "query-migrate": {},
    "query-migrate-capabilities": [{"capability": "xbzrle", "state": False}],
    "query-migrate-parameters": {"max-bandwidth": 1},
    "query-version": {"qemu": {"major": 9, "minor": 0, "micro": 0}, "package": ""},
    "query-kvm": {"enabled": True, "present": True},
    "query-cpus-fast": [{"qom-path": "/x", "thread-id": 7}],
    "query-memory-size-summary": {"base-memory": 1},
    "query-qmp-schema": [],
    "qom-get": "pc-machine",
}


class Server:
    """Sends the stream ``sends`` into what it is passed, and then says that it is completed."""

    def __init__(self, sends: bytes = b"", answer: Answer = lambda _command: None) -> None:
        self.sends = sends
        self.answer = answer
        self.commands: list[str] = []

    def serve(self, connection: socket.socket) -> None:
        passed, migrated, buffer = -1, False, ""
        self.connection = connection
        connection.sendall(GREETING)
        while True:
            data, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 4)
            for one in descriptors:
                passed = one
            if not data:
                return
            buffer += data.decode()
            while buffer := buffer.lstrip():
                try:
                    message, end = json.JSONDecoder().raw_decode(buffer)
                except ValueError:
                    break  # its rest is still to come
                buffer = buffer[end:]
                command = message["execute"]
                self.commands.append(command)
                if command == "migrate":
                    os.write(passed, self.sends)
                    os.close(passed)
                    migrated = True
                said = self.answer(command)
                if said is None:
                    value = SANE.get(command, {})
                    if migrated and command == "query-migrate":
                        value = {"status": "completed"}
                    said = json.dumps(value).encode()
                number = json.dumps(message.get("id")).encode()
                kind = b"error" if said.startswith(REFUSED) else b"return"
                connection.sendall(b'{"%s": %s, "id": %s}\n' % (kind, said, number))


@contextlib.contextmanager
def serving(folder: Path, server: Server) -> Iterator[str]:
    path = folder / "qmp"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    server.serve(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"unix:{path}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(5)


STREAM = builders.stream([], [builders.zero(0, "pc.ram")])


@pytest.mark.parametrize(
    ("sends", "says"),
    [
        (b"", "it sent nothing"),
        (b"junk", "is not a stream"),
        (STREAM[: len(STREAM) // 2], "not a whole stream"),
        (STREAM[:60], "not a whole stream"),
    ],
)
def test_completed_is_not_believed(sends: bytes, says: str, tmp_path: Path) -> None:
    output = tmp_path / "out" / "dump.bin"
    output.parent.mkdir()
    server = Server(sends)
    with (
        serving(tmp_path, server) as address,
        sync.connect(address) as qmp,
        pytest.raises(EnvironmentFault, match=says),
    ):
        qmp.capture(str(output))
    assert not list(output.parent.iterdir())
    # What was changed is put back.
    assert server.commands.count("migrate-set-parameters") == 2


def test_a_disk_that_qemu_finds_full(tmp_path: Path) -> None:
    # With mapped-ram it writes the file itself.
    failed = {"status": "failed", "error-desc": "Unable to write: No space left on device"}

    def full(command: str) -> bytes | None:
        migrated = command == "query-migrate" and "migrate" in server.commands
        return json.dumps(failed).encode() if migrated else None

    server = Server(answer=full)
    with (
        serving(tmp_path, server) as address,
        sync.connect(address) as qmp,
        pytest.raises(EnvironmentFault, match="No space left on device"),
    ):
        qmp.capture(str(tmp_path / "dump.bin"))


@pytest.mark.parametrize("times", [3, 1 << 30])
def test_a_migration_that_is_over_and_not_cleaned_up(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 7.2 is stuck for ever if another one is started meanwhile.
    monkeypatch.setattr(timeouts, "SETTLED", 0.3)
    left = times

    def busy(command: str) -> bytes | None:
        nonlocal left
        if command != "query-yank":
            return None
        left -= 1
        return b'[{"type": "chardev", "id": "x"}%s]' % (b', {"type": "migration"}' * (left >= 0))

    server = Server(STREAM, busy)
    with serving(tmp_path, server) as address, sync.connect(address) as qmp:
        if times == 3:
            qmp.capture(str(tmp_path / "dump.bin"))
            assert server.commands.count("query-yank") == 4
        else:
            with pytest.raises(Refused, match="has not done with an earlier migration"):
                qmp.capture(str(tmp_path / "dump.bin"))
            assert "migrate" not in server.commands


def test_a_qemu_that_has_no_query_yank(tmp_path: Path) -> None:
    refusal = REFUSED + b', "desc": "The command query-yank has not been found"}'
    server = Server(STREAM, lambda command: refusal if command == "query-yank" else None)
    with serving(tmp_path, server) as address, sync.connect(address) as qmp:
        assert qmp.capture(str(tmp_path / "dump.bin")).size == len(STREAM)


def test_a_whole_stream_is_taken(tmp_path: Path) -> None:
    for number, sends in enumerate((STREAM, builders.stream([], [], describe=False))):
        with serving(tmp_path, Server(sends)) as address, sync.connect(address) as qmp:
            done = qmp.capture(str(tmp_path / f"{number}.bin"))
        assert (tmp_path / f"{number}.bin").read_bytes() == sends
        assert done.size == len(sends)


@pytest.mark.parametrize(("sends", "status"), [(b"", 4), (STREAM[:90], 4), (STREAM, 0)])
def test_standard_output(sends: bytes, status: int, svmstream: Run, tmp_path: Path) -> None:
    with serving(tmp_path, Server(sends)) as address:
        done = svmstream("capture", "--qmp", address, "-o", "-")
    assert done.returncode == status, done.stderr
    assert done.stdout == sends
    assert (b"QEMU reported that the migration is completed" in done.stderr) is (status == 4)


ODD = (
    *(b"null", b"3", b'"x"', b"[]", b"[null]", b"[[]]", b"{}", b"9" * 400, b"9" * 5000, b"1e999"),
    *(b"NaN", b'"\\ud800"', b"[" * 3000, b"\xff\xfe"),
    b'{"status": "\\u001b[2J\\ud800", "running": 1}',
    b'{"status": "active", "ram": {"mbps": ' + b"9" * 400 + b', "transferred": 1e400}}',
    b'[{"capability": 1}, {"capability": "xbzrle", "state": "x"}]',
    b'[{"values": [1, [], "none"]}]',
)


@pytest.mark.parametrize("command", SANE)
def test_odd_answers(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SILENT_END", "MIGRATION_END", "RECONNECT", "NOBODY_LISTENS"):
        monkeypatch.setattr(timeouts, name, 0.05)
    for odd in ODD:
        server = Server(STREAM, lambda name, odd=odd: odd if name == command else None)  # type: ignore[misc]
        with serving(tmp_path, server) as address:
            for number, use in enumerate((_looked_at, _captured)):
                with contextlib.suppress(SvmStreamError):
                    use(address, str(tmp_path / f"{number}.out"))


def _looked_at(address: str, _path: str) -> None:
    from qemu_svm.doctor import target
    from qemu_svm.doctor.judge_qemu import judge_target

    list(judge_target(asyncio.run(target.ask(address))))


def _captured(address: str, path: str) -> None:
    with sync.connect(address, timeout=2) as qmp:
        qmp.capture(path, replace=True)


@pytest.mark.parametrize(
    ("greeting", "says"),
    [
        (b"\xff\xfe\n", "not a QMP socket"),
        (b'{"QMP":' + b"[" * 100_000 + b"\n", "not a QMP socket: its JSON is nested too deeply"),
        (b'{"QMP": "' + b"a" * (5 << 20), "not a QMP socket: a message is longer than 2 MiB"),
        (b'{"QMP": {"version": {"qemu": ' + b"9" * 5000 + b"}}}\n", "not a QMP socket"),
        (b"null\n", "not a QMP socket"),
    ],
    ids=["bytes", "deep", "long", "number", "null"],
)
def test_odd_greetings(
    greeting: bytes, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "GREETING", greeting)
    with (
        serving(tmp_path, Server()) as address,
        pytest.raises(QmpError, match=says) as info,
        sync.connect(address),
    ):
        pass
    assert len(str(info.value)) < 500


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b'"' + b"a" * (3 << 20) + b'"', "a message is longer than 2 MiB"),
        (b"[" + b"{}," * 30_000 + b"{}]", "unexpected answer of query-status"),
        (b'"' + b"a" * (1 << 20) + b'"', "unexpected answer of query-status"),
    ],
    ids=["too long", "items", "characters"],
)
def test_long_answers(answer: bytes, says: str, tmp_path: Path) -> None:
    server = Server(answer=lambda command: answer if command == "query-status" else None)
    with serving(tmp_path, server) as address, sync.connect(address) as qmp:
        with pytest.raises(QmpError, match=says) as info:
            qmp.status()
        assert len(str(info.value)) < 500


def test_events_without_end(tmp_path: Path) -> None:
    # Of those that nobody has asked for, the last ones are kept; of others none.
    def events(command: str) -> None:
        if command == "query-status":
            for number in range(1000):
                for name, more in (("STOP", ""), ("OTHER", ""), ("STOP", "x" * 5000)):
                    stamp = {"seconds": number, "microseconds": 0}
                    event = {"event": name, "data": {"more": more}, "timestamp": stamp}
                    server.connection.sendall(json.dumps(event).encode() + b"\n")

    async def listen(address: str) -> tuple[list[float], int]:
        async with Client.connect(address) as client, client.events("STOP") as kept:
            await client.status()
            assert client._qmp is not None
            history = len(client._qmp.events.history)
            return [event.time for event in kept.pending()], history

    server = Server(answer=events)
    with serving(tmp_path, server) as address:
        times, history = asyncio.run(listen(address))
    assert times == list(range(1000 - len(times), 1000))
    assert 100 < len(times) < 1000
    assert history == 0


def test_a_name_that_lies(svmstream: Run, tmp_path: Path) -> None:
    assert compressed_name("a.bin") is None
    with serving(tmp_path, Server(STREAM)) as address:
        for name in ("x.zst", "x.bin.GZ", "x.xz"):
            done = svmstream("capture", "--qmp", address, "-o", tmp_path / name)
            assert done.returncode == 2
            assert b"a capture is not compressed" in done.stderr
            with sync.connect(address) as qmp, pytest.raises(Refused, match="not compressed"):
                qmp.capture(str(tmp_path / name))
