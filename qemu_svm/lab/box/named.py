"""Boxes that stay: each has a name, a keeper process, and a file that says where it is.

The file is locked by the keeper as long as it lives, so a name whose file nobody
locks is free, whatever the file says and whoever was killed.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qemu_svm.errors import LabError
from qemu_svm.lab.box.link import Link
from qemu_svm.lab.box.session import Session
from qemu_svm.lab.suites import cache

DEFAULT_NAME = "box"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
#: Seconds that a keeper may take to end before it is killed.
_END_LIMIT = 20.0


@dataclass(frozen=True)
class State:
    """A box that is up.

    :param pid: of its keeper.
    :param socket: where other processes can use it.
    :param console: the kernel's log.
    :param options: arguments of :class:`qemu_svm.lab.Box` that were given.
    """

    name: str
    pid: int
    socket: str
    share: str
    console: str
    versions: dict[str, str]
    options: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """The same for JSON."""
        return asdict(self)


def place(name: str) -> Path:
    """Return the file of a name.

    :raises LabError: no box can have this name.
    """
    if not _NAME.fullmatch(name):
        raise LabError(
            f"a box cannot be called {name!r}", hint="letters, digits, dots, dashes; at most 40"
        )
    return _folder() / f"{name}.json"


def _folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) / "qemu-svm" if runtime and Path(runtime).is_dir() else cache.folder()
    return base / "up"


@contextmanager
def taken(name: str) -> Iterator[Path]:
    """Hold a name; its file is gone afterwards.

    :raises LabError: a box of this name is up.
    """
    path = place(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_ino != os.stat(path).st_ino:
                raise FileNotFoundError
        except BlockingIOError:
            os.close(handle)
            raise LabError(
                f"a box called {name} is up already", hint=f"svmstream lab down --name {name}"
            ) from None
        except FileNotFoundError:  # another one has just ended
            os.close(handle)
            continue
        break
    try:
        os.truncate(handle, 0)
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def running() -> list[State]:
    """Return the boxes that are up and ready, by name; files of dead ones are removed."""
    return [state for path in sorted(_folder().glob("*.json")) if (state := _read(path))]


def _read(path: Path) -> State | None:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(OSError, ValueError, TypeError):
            return State(**json.loads(os.pread(handle, 1 << 20, 0)))
        return None  # not ready yet
    else:
        with suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == os.stat(path).st_ino:
                path.unlink()
        return None
    finally:
        os.close(handle)


def find(name: str | None) -> State:
    """Return a box that is up: the named one, or the only one.

    :raises LabError: there is none, or no name and several.
    """
    if name is not None:
        place(name)
    states = [state for state in running() if name in (None, state.name)]
    if not states:
        called = f" called {name}" if name is not None else ""
        raise LabError(f"no box{called} is up", hint="svmstream lab up, svmstream lab list")
    if len(states) > 1:
        names = ", ".join(state.name for state in states)
        raise LabError(f"several boxes are up: {names}", hint="choose one with --name")
    return states[0]


def up(name: str, options: dict[str, Any]) -> State:
    """Start a box that stays; return when it is ready.

    :param options: arguments of :class:`qemu_svm.lab.Box`, as JSON can carry them.
    :raises LabError: it does not start, or its name is taken.
    """
    place(name)
    wish = json.dumps({"name": name, "options": options})
    with tempfile.TemporaryFile() as errors:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "qemu_svm.lab.box.keeper", wish],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
            start_new_session=True, cwd="/", env=dict(os.environ, PYTHONSAFEPATH="1"),
        )  # fmt: skip
        assert keeper.stdout is not None
        try:
            answer = json.loads(keeper.stdout.readline() or b"{}")
        except BaseException:
            keeper.terminate()
            keeper.wait()
            raise
        finally:
            keeper.stdout.close()
        if "ready" in answer:
            return State(**answer["ready"])
        keeper.wait()
        if "error" in answer:
            raise LabError(answer["error"], hint=answer["hint"])
        errors.seek(0)
        lines = errors.read(1 << 16).decode(errors="replace").strip().splitlines()
        raise LabError(f"the keeper of {name} ended: {lines[-1] if lines else 'without a word'}")


def down(state: State) -> None:
    """End a box, and wait until nothing of it is left."""
    end = time.monotonic() + _END_LIMIT
    number: int = signal.SIGTERM
    path = place(state.name)
    while (alive := _read(path)) is not None and alive.pid == state.pid:
        with suppress(ProcessLookupError):
            os.kill(state.pid, number)
        number = 0 if time.monotonic() < end else signal.SIGKILL
        time.sleep(0.05)


class Attached(Session):
    """A box that is up, used from this process."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self._state = state
        self.versions = dict(state.versions)

    def _start(self) -> None:
        self._start_loop()
        link = self._call(self._connect())
        self._use(link, Path(self._state.share), Path(self._state.console))

    async def _connect(self) -> Link:
        try:
            return Link(*await asyncio.open_unix_connection(self._state.socket))
        except OSError as error:
            raise LabError(
                f"the box called {self._state.name} cannot be reached: {error.strerror}"
            ) from error
