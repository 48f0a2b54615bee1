"""Guarantees that the emulator ends with this process and leaves no files.

Three mechanisms ensure it, however this process ends:

* the emulator is killed by the kernel when the thread that started it ends
  (``setpriv --pdeathsig``), so it has to be started by a long-lived thread;
* a remover, a small shell that reads a pipe from this process, removes the box's
  directory when the pipe is closed, by this process or by its death;
* the agent inside ends the box when its connection is closed.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.host import host_faults, mortal

# The pipe is the remover's standard input.  Signals of a terminal go to whole process
# groups; the remover has its own session and survives them.
_REMOVER = 'trap "" INT TERM HUP QUIT; read -r _; chmod -R u+rwX "$1"; rm -rf -- "$1"'
_PATH_LIMIT = 80  # bytes; a UNIX socket in it may have 107


class Folder:
    """A directory for one box, removed at the end, or when this process dies.

    :raises LabError: it cannot be made, or its path is too long for a socket in it.
    """

    def __init__(self) -> None:
        with host_faults("make a directory for the box"):
            self.path = Path(tempfile.mkdtemp(prefix="svmbox-"))
        try:
            if len(str(self.path)) > _PATH_LIMIT:
                raise LabError(
                    f"{self.path} is too long for the path of a socket",
                    hint="set TMPDIR to a shorter one",
                )
            with host_faults("start /bin/sh"):
                self._remover = subprocess.Popen(
                    ["/bin/sh", "-c", _REMOVER, "sh", str(self.path)],
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    start_new_session=True, cwd="/",
                )  # fmt: skip
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)  # the remover may do the same now
            raise

    def remove(self) -> None:
        """Remove the directory and everything in it."""
        assert self._remover.stdin is not None
        self._remover.stdin.close()
        self._remover.wait()


class Emulator:
    """A running emulator; made in the thread of an event loop, which must outlive it.

    :param errors: file for its messages.
    :raises OSError: it cannot be started.
    """

    def __init__(self, command: list[str], errors: Path) -> None:
        self._errors = errors
        with errors.open("wb") as file:
            self._process = subprocess.Popen(
                mortal(command), stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True, env=dict(os.environ, LC_ALL="C"),
            )  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._status: asyncio.Future[int] = self._loop.create_future()
        self._watched = os.pidfd_open(self.pid)
        self._loop.add_reader(self._watched, self._reap)

    def _reap(self) -> None:
        self._loop.remove_reader(self._watched)
        os.close(self._watched)
        self._status.set_result(self._process.wait())

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status as in :mod:`subprocess`; None while it runs."""
        return self._status.result() if self._status.done() else None

    async def ended(self) -> None:
        """Wait until it has ended."""
        await asyncio.shield(self._status)

    async def kill(self) -> None:
        """Kill it and wait for its end."""
        self._process.kill()
        await self.ended()

    def messages(self) -> str:
        """Return its messages, without the warnings about features that TCG lacks."""
        try:
            text = self._errors.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(
            line
            for line in text.splitlines()
            if "TCG doesn't support requested feature" not in line
        ).strip()
