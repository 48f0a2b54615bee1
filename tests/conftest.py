"""What the tests share: the captures, and runs of the real command."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings

from qemu_svm import cli
from qemu_svm.lab import Box
from qemu_svm.machine import Machine, read_machine
from qemu_svm.source import open_source
from qemu_svm.stream import read_stream
from tests.support import documents

# What a capture notes for the case that it is killed is not the user's.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="svmstream-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

ROOT = Path(__file__).resolve().parent.parent
STREAMS = ROOT / "streams"
MANIFEST: dict[str, Any] = json.loads((STREAMS / "manifest.json").read_text())
CAPTURES: list[dict[str, Any]] = MANIFEST["streams"]

# A busy machine is no defect: examples are counted, not timed.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Who runs the tests in the background may ignore these, and with it what they start would.
for _signal in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def capture_bytes(name: str) -> bytes:
    """A whole capture, decompressed."""
    with open_source(str(STREAMS / name)) as source:
        return source.read_at(0, source.size())


@pytest.fixture(params=CAPTURES, ids=lambda entry: entry["file"].removesuffix(".mig.zst"))
def capture(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each real capture's entry in the manifest."""
    entry: dict[str, Any] = request.param
    return entry


@pytest.fixture
def machine(capture: dict[str, Any]) -> Iterator[Machine]:
    """Each real capture, read."""
    with open_source(str(STREAMS / capture["file"])) as source:
        yield read_machine(read_stream(source))


@pytest.fixture(scope="session")
def sample() -> bytes:
    """One capture with nested paging, decompressed."""
    return capture_bytes("qemu10.0-linux6.12-nested-npt.mig.zst")


@pytest.fixture(scope="session")
def sample_file(sample: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a plain file."""
    path = tmp_path_factory.mktemp("sample") / "dump.bin"
    path.write_bytes(sample)
    return path


@pytest.fixture(scope="session", autouse=True)
def documents_conform() -> Iterator[None]:
    """Hold every document that a test makes against its schema."""
    with documents.held():
        yield


Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="session")
def svmstream() -> Run:
    """Run the installed command as a process of its own: slow, for what only a process shows."""
    program = Path(sys.executable).with_name("svmstream")

    def run(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
        options.setdefault("timeout", 60)
        done = subprocess.run(  # noqa: PLW1510 - the tests look at the status
            [program, *map(str, args)], capture_output=True, **options
        )
        documents.check_printed(args, done.stdout)
        return done

    return run


@contextlib.contextmanager
def _standard_input(content: bytes) -> Iterator[None]:
    """A pipe with content as this process's standard input."""
    read, write = os.pipe()
    before = os.dup(0)
    os.dup2(read, 0)
    os.close(read)

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError), open(write, "wb") as file:
            file.write(content)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        with open(0, encoding="utf-8", closefd=False) as opened:
            sys.stdin = opened
            yield
    finally:
        os.dup2(before, 0)
        os.close(before)
        feeder.join()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run the command line in this process, much faster; as if by :func:`subprocess.run`."""

    def run(
        *args: str | Path,
        input: bytes | None = None,  # noqa: A002 - as subprocess.run calls it
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        words = ["svmstream", *map(str, args)]
        capfdbinary.readouterr()
        with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
            patch.setattr(sys, "argv", words)
            if input is not None:
                patch.setattr(sys, "stdin", sys.stdin)
                stack.enter_context(_standard_input(input))
            if cwd is not None:
                patch.chdir(cwd)
            if env is not None:
                stack.enter_context(mock.patch.dict(os.environ, env, clear=True))
            status = cli._run()
            sys.stdout.flush()
        out, errors = capfdbinary.readouterr()
        documents.check_printed(args, out)
        return subprocess.CompletedProcess(words, status, out, errors)

    return run


@pytest.fixture(scope="session")
def box() -> Iterator[Box]:
    """An AMD host in a box, with Linux 6.1; one for all tests that use it."""
    with Box(kernel="6.1") as made:
        yield made


@pytest.fixture(scope="session")
def box_6_12() -> Iterator[Box]:
    """One with Linux 6.12, and a user land and an emulator that are not of its suite."""
    with Box(kernel="6.12", qemu="7.2", emulator="10.0", npt=False, smp=2) as made:
        yield made


_MARKS = {
    "box": pytest.mark.box,  # one box for all tests of a run
    "box_6_12": pytest.mark.box,
    "qemu_7_2": pytest.mark.box,  # out of the lab's cache, as are the next
    "qemu_10_0": pytest.mark.box,
    "newer": pytest.mark.box,
    "vm": pytest.mark.qemu,
}
"""By fixture."""

_ROOMS = {"lab": pytest.mark.box, "qmp": pytest.mark.qemu, "plugins": pytest.mark.qemu}
"""By directory: nearly every test in it needs one."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what a test needs; let one worker run all tests that share the box."""
    names = getattr(item, "fixturenames", ())
    for name in {"box", "box_6_12"} & set(names):
        item.add_marker(pytest.mark.xdist_group(name))
    for name in set(names) & set(_MARKS):
        item.add_marker(_MARKS[name])
    for room in set(item.path.relative_to(ROOT).parts[:-1]) & set(_ROOMS):
        item.add_marker(_ROOMS[room])
