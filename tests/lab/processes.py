"""Which processes and files belong to a run of the command: told by its TMPDIR."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SVMSTREAM = Path(sys.executable).with_name("svmstream")


class Place:
    """A short TMPDIR and XDG_RUNTIME_DIR of its own; everything in it is ours to find."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environment = dict(os.environ, TMPDIR=str(path), XDG_RUNTIME_DIR=str(path))

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start the command."""
        return subprocess.Popen(
            [SVMSTREAM, *arguments], env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run the command to its end."""
        return subprocess.run(
            [SVMSTREAM, *arguments], env=self.environment, capture_output=True, timeout=120,
            check=False,
        )  # fmt: skip

    def processes(self) -> list[str]:
        """Command lines of what runs with our TMPDIR."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if f"TMPDIR={self.path}".encode() in (path / "environ").read_bytes():
                    found.append((path / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
        return found

    def files(self) -> list[Path]:
        """What lies in it, but for the empty folder where names of boxes are."""
        return [path for path in self.path.rglob("*") if path.name not in ("qemu-svm", "up")]

    def wait_until_nothing_is_left(self) -> None:
        """Wait for the end of all processes and files; they go in a moment or never."""
        until(lambda: not self.processes() and not self.files())


@contextmanager
def place() -> Iterator[Place]:
    """Make one; a test that fails must not leave processes either."""
    path = Path(tempfile.mkdtemp(prefix="svm", dir="/tmp"))
    made = Place(path)
    try:
        yield made
    finally:
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if f"TMPDIR={path}".encode() in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), 9)
            except OSError:
                continue
        shutil.rmtree(path, ignore_errors=True)


def until(holds: Callable[[], object], limit: float = 60) -> None:
    """Wait for something that comes soon."""
    end = time.monotonic() + limit
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
