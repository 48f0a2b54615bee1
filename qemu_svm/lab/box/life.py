"""The emulator's life: it never outlives us, and nothing of it stays behind.

Three things see to that, whatever ends our own process:

* the emulator asks the kernel to be killed when the thread that started it ends
  (``setpriv --pdeathsig``), so it must be started by a thread that lives long;
* a keeper, a small shell that reads a pipe of ours, removes the box's folder when
  the pipe closes, be it by us or by our death;
* the agent inside ends the box when its line is cut.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from qemu_svm.errors import LabError

# The pipe is the keeper's standard input.  Signals of a terminal go to whole groups
# of processes; the keeper has a session of its own and outlives them.
_KEEPER = 'trap "" INT TERM HUP QUIT; read -r _; chmod -R u+rwX "$1"; rm -rf -- "$1"'
_PATH_LIMIT = 100  # of a UNIX socket, with some left for its name


def mortal(command: list[str]) -> list[str]:
    """Make a command line whose process is killed when the thread that started it ends.

    :raises LabError: ``setpriv`` is not here.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise LabError("setpriv is not here", hint="apt-get install util-linux")
    return [setpriv, "--pdeathsig", "KILL", *command]


class Folder:
    """A folder for one box, removed at the end, also by our death."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="svmbox-"))
        try:
            if len(str(self.path)) > _PATH_LIMIT - 20:
                raise LabError(
                    f"{self.path} is too long for the path of a socket",
                    hint="set TMPDIR to a shorter one",
                )
            self._keeper = subprocess.Popen(
                ["/bin/sh", "-c", _KEEPER, "sh", str(self.path)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True, cwd="/",
            )  # fmt: skip
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)  # the keeper may be at it, too
            raise

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()


class Emulator:
    """A running emulator; to be made in the thread of a loop, which outlives it.

    :param errors: file for its messages.
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
        """Its process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its status as of subprocess, once it has ended."""
        return self._status.result() if self._status.done() else None

    async def ended(self) -> None:
        """Wait for its end."""
        await asyncio.shield(self._status)

    async def kill(self) -> None:
        """Kill it and wait for its end."""
        self._process.kill()
        await self.ended()

    def messages(self) -> str:
        """What it said, without the warnings about features that TCG lacks."""
        try:
            text = self._errors.read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(
            line
            for line in text.splitlines()
            if "TCG doesn't support requested feature" not in line
        ).strip()
