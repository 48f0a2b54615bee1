"""A Dask cluster of this host: a scheduler and workers, started by hand."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Dask:
    """Scheduler and workers.

    :param address: of the scheduler.
    """

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def work(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker with one thread."""
        words = ["distributed.cli.dask_worker", self.address, "--no-nanny", "--no-dashboard"]
        self.workers.append(_start(*words, "--nthreads", "1", **environment))
        return self.workers[-1]

    def end(self) -> None:
        """End all of it."""
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def _start(module: str, *words: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *words], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, cwd="/",
        env=dict(os.environ, PYTHONPATH=str(ROOT), **environment),
    )  # fmt: skip


@contextlib.contextmanager
def dask(workers: int) -> Iterator[Dask]:
    """Start a cluster for the time of the context."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    made = Dask(f"tcp://127.0.0.1:{port}", _start("distributed.cli.dask_scheduler", *words))
    try:
        for _ in range(workers):
            made.work()
        yield made
    finally:
        made.end()
