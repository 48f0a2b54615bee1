"""Named boxes: each has a keeper process, and a file that records how to reach it.

The keeper locks the file as long as it lives, so a name whose file is not locked is free,
whatever the file contains and whichever process was killed.
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
from typing import Any, TypedDict

from qemu_svm.errors import LabError
from qemu_svm.lab.box.link import Link
from qemu_svm.lab.box.session import BoxSession
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.suites import cache

DEFAULT_NAME = "box"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_END_LIMIT = 20.0  # seconds from SIGTERM to the end of a keeper; then it is killed


class BoxOptions(TypedDict, total=False):
    """Arguments of :class:`qemu_svm.lab.Box` that were given, as JSON can express them."""

    kernel: str
    qemu: str
    npt: bool
    cpu: str
    smp: int
    memory: int
    emulator: str
    emulator_args: list[str]
    share: str
    mirror: str
    own: list[str]
    modules: dict[str, str]
    words: list[str]


@dataclass(frozen=True)
class BoxRecord:
    """A named box that is up.

    :param pid: of its keeper.
    :param socket: path of the UNIX socket through which other processes use it.
    :param share: path of the directory that is ``/share`` inside.
    :param console: path of the kernel's log.
    :param versions: see :class:`qemu_svm.lab.box.session.BoxSession`.
    :param options: arguments with which :class:`qemu_svm.lab.Box` was made.
    """

    name: str
    pid: int
    socket: str
    share: str
    console: str
    versions: dict[str, str]
    options: BoxOptions

    def document(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def record_file(name: str) -> Path:
    """Return the path of the file of a name.

    :raises LabError: the name is not valid.
    """
    if not _NAME.fullmatch(name):
        raise LabError(
            f"invalid name of a box: {name!r}",
            hint="letters, digits, dots, dashes, underscores; at most 40",
        )
    return _folder() / f"{name}.json"


def _folder() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    base = Path(runtime) / "qemu-svm" if runtime and Path(runtime).is_dir() else cache.folder()
    return base / "up"


@contextmanager
def taken(name: str) -> Iterator[Path]:
    """Hold the lock of a name; its file is removed afterwards.

    :returns: the path of the file, which is empty.
    :raises LabError: a box of this name is up, or the file cannot be made.
    """
    path = record_file(name)
    while True:
        with host_faults(f"make {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(handle).st_ino != os.stat(path).st_ino:
                raise FileNotFoundError
        except BlockingIOError:
            os.close(handle)
            raise LabError(
                f"a box named {name} is already up", hint=f"svmstream lab down --name {name}"
            ) from None
        except FileNotFoundError:  # another box of this name has just ended
            os.close(handle)
            continue
        break
    try:
        os.truncate(handle, 0)
        yield path
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def running() -> list[BoxRecord]:
    """Return the boxes that are up and ready, by name; files of dead boxes are removed."""
    return [record for path in sorted(_folder().glob("*.json")) if (record := _read(path))]


def _read(path: Path) -> BoxRecord | None:
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(OSError, ValueError, TypeError):
            return BoxRecord(**json.loads(os.pread(handle, 1 << 20, 0)))
        return None  # not ready yet
    else:
        with suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == os.stat(path).st_ino:
                path.unlink()
        return None
    finally:
        os.close(handle)


def find(name: str | None) -> BoxRecord:
    """Return the box of a name; without a name, the only box.

    :raises LabError: no such box is up, or there are several and no name.
    """
    if name is not None:
        record_file(name)
    records = [record for record in running() if name in (None, record.name)]
    if not records:
        named = f" named {name}" if name is not None else ""
        raise LabError(f"no box{named} is up", hint="svmstream lab up, svmstream lab list")
    if len(records) > 1:
        names = ", ".join(record.name for record in records)
        raise LabError(f"several boxes are up: {names}", hint="choose one with --name")
    return records[0]


def up(name: str, options: dict[str, Any]) -> BoxRecord:
    """Start a named box; return when it is ready.

    :param options: arguments of :class:`qemu_svm.lab.Box`, as JSON can express them.
    :raises LabError: it does not start, or a box of this name is up.
    """
    record_file(name)
    request = json.dumps({"name": name, "options": options})
    with host_faults("start the keeper of a box"), tempfile.TemporaryFile() as errors:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "qemu_svm.lab.box.keeper", request],
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
            return BoxRecord(**answer["ready"])
        keeper.wait()
        if "error" in answer:
            raise LabError(answer["error"], hint=answer["hint"])
        errors.seek(0)
        lines = errors.read(1 << 16).decode(errors="replace").strip().splitlines()
        raise LabError(f"the keeper of {name} ended: {lines[-1] if lines else 'no message'}")


def down(record: BoxRecord) -> None:
    """End a box; return when nothing of it is left.

    :raises LabError: its keeper belongs to another user.
    """
    end = time.monotonic() + _END_LIMIT
    number: int = signal.SIGTERM
    path = record_file(record.name)
    while (alive := _read(path)) is not None and alive.pid == record.pid:
        with host_faults(f"end the box {record.name}"), suppress(ProcessLookupError):
            os.kill(record.pid, number)
        number = 0 if time.monotonic() < end else signal.SIGKILL
        time.sleep(0.05)


class Attached(BoxSession):
    """A named box that is up, used from this process.

    :raises LabError: on entering, it cannot be reached.
    """

    def __init__(self, record: BoxRecord) -> None:
        super().__init__()
        self._record = record
        self.versions = dict(record.versions)

    def _start(self) -> None:
        self._start_loop()
        link = self._call(self._connect())
        self._use(link, Path(self._record.share), Path(self._record.console))

    async def _connect(self) -> Link:
        with host_faults(f"connect to the box {self._record.name}"):
            return Link(*await asyncio.open_unix_connection(self._record.socket))
