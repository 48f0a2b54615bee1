"""A box: an emulated AMD host with a real Linux, KVM and QEMU in it.

::

    with Box(kernel="6.1") as box:
        done = box.run(["uname", "-r"], timeout=30)

The class is synchronous; an asyncio loop in a thread of its own does the work,
so several threads may use one box at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from qemu_svm.errors import LabError
from qemu_svm.lab import boot, build, console, suites
from qemu_svm.lab.cache import Built, Progress, silent
from qemu_svm.lab.command import Command, Done
from qemu_svm.lab.emulator import Machine, arguments, program
from qemu_svm.lab.inside import frames
from qemu_svm.lab.life import Emulator, Folder
from qemu_svm.lab.link import LOST, Channel, Link

_T = TypeVar("_T")

#: Seconds until a box must have answered; a loaded machine is slow.
BOOT_LIMIT = 120.0


class Box:
    """An emulated AMD host; see the module.  Use it with ``with``.

    :param kernel: release line of its kernel: 5.10, 6.1, 6.12, 7.2.
    :param qemu: release line of the QEMU inside, which brings the user land: 5.2, 7.2,
        10.0, 11.1; by default the one that belongs to the kernel.
    :param npt: load ``kvm_amd`` with nested paging.
    :param cpu, smp, memory: of the emulated host; memory in MiB.
    :param emulator: the emulator itself: None for the host's ``qemu-system-x86_64``,
        else a release line out of the cache.
    :param emulator_args: more arguments for it.
    :param share: a folder of the host to be seen as ``/share`` inside; by default one that
        is removed at the end.
    :param progress: told what is being done.
    """

    def __init__(
        self,
        kernel: str = "6.1",
        *,
        qemu: str | None = None,
        npt: bool = True,
        cpu: str = "EPYC",
        smp: int = 1,
        memory: int = 2048,
        emulator: str | None = None,
        emulator_args: Sequence[str] = (),
        share: Path | None = None,
        mirror: str | None = None,
        progress: Progress = silent,
    ) -> None:
        self._kernel = suites.of_kernel(kernel)
        self._user = self._kernel if qemu is None else suites.of_qemu(qemu)
        self._emulator_suite = None if emulator is None else suites.of_qemu(emulator)
        self.machine = Machine(npt, cpu, smp, memory)
        self._emulator_args = tuple(emulator_args)
        self._share = share
        self._mirror = mirror
        self._progress = progress
        self._stack = contextlib.ExitStack()
        self._death: str | None = None
        self._forwards = 0
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @property
    def share(self) -> Path:
        """The folder on the host that is ``/share`` inside."""
        return self._shared

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float | None = None,
        stdin: bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
    ) -> Done:
        """Run a command as root inside and wait for its end.

        :param timeout: seconds; then it is killed.
        :raises LabError: it cannot be started, the time is up, or the box has died.
        """
        command = self.start(argv, stdin=stdin is not None, cwd=cwd, env=env)
        if stdin is not None:
            command.send(stdin)
            command.end()
        return command.wait(timeout)

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        tty: tuple[int, int] | None = None,
        sink: Callable[[int, bytes], None] | None = None,
    ) -> Command:
        """Start a command as root inside.

        :param stdin: it has an input; see :meth:`Command.send`.
        :param tty: rows and columns: give it a terminal.
        :param sink: called with 1 or 2 and bytes of its output as they come, instead of
            their being kept.
        """
        wish = {"argv": list(argv), "stdin": stdin, "cwd": cwd, "env": env, "tty": tty}
        return self._call(Command.open(self, self._loop, self._link, wish, sink))

    def forward(self, inside: str) -> Path:
        """Make a UNIX socket on the host that leads to a UNIX socket inside.

        Any number of connections may be made; each one is a connection inside.  Where nothing
        listens inside, a connection is closed at once.

        :param inside: its path inside the box.
        :returns: the path of the socket on the host.
        """
        return self._call(self._forward(inside))

    def console(self) -> str:
        """Return the kernel's log so far."""
        try:
            return (self._folder.path / "console").read_text(errors="replace")
        except OSError:
            return ""

    def oops(self) -> str | None:
        """Return the first oops, BUG, panic or stall of the kernel inside, or None."""
        return console.first_trouble(self.console())

    @property
    def pid(self) -> int:
        """Process id of the emulator."""
        return self._emulator.pid

    def death(self) -> LabError:
        """Return the error that says why the box is not there (any more)."""
        trouble = self.oops()
        if trouble:
            return LabError(f"the kernel in the box died: {console.headline(trouble)}")
        return LabError(self._death or "the box is gone")

    # Starting

    def _start(self) -> None:
        enter = self._stack.enter_context
        held: dict[str, Built] = {}
        for suite in (self._kernel, self._user, self._emulator_suite):
            if suite is not None and suite.name not in held:
                using = build.using(suite, mirror=self._mirror, progress=self._progress)
                held[suite.name] = enter(using)
        kernel = held[self._kernel.name]
        user = held[self._user.name]
        emulator = None if self._emulator_suite is None else held[self._emulator_suite.name]
        command = program(emulator)
        self._progress(f"starting Linux {kernel.manifest.release}")
        self._folder = Folder()
        self._stack.callback(self._folder.remove)
        self._shared = self._share or self._folder.path / "share"
        self._shared.mkdir(exist_ok=True)
        command += arguments(
            self.machine, boot.kernel(kernel), boot.initrd(kernel),
            root=user.root, share=self._shared, run=self._folder.path,
        )  # fmt: skip
        command += self._emulator_args
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="box", daemon=True)
        thread.start()
        self._stack.callback(self._end_loop, thread)
        self._stack.callback(lambda: self._call(self._stop()))
        self._call(self._boot(command))
        self.versions = {
            "kernel": kernel.manifest.kernel,
            "qemu": user.manifest.qemu,
            "emulator": _version(program(emulator)),
        }

    def _end_loop(self, thread: threading.Thread) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        future: Future[_T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def _boot(self, command: list[str]) -> None:
        arrived: asyncio.Queue[Link] = asyncio.Queue()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            arrived.put_nowait(Link(reader, writer))

        self._servers = [await asyncio.start_unix_server(accept, self._folder.path / "agent")]
        self._emulator = await Emulator.start(command, self._folder.path / "emulator")
        self._watch = asyncio.create_task(self._emulator.ended())
        ready = asyncio.create_task(self._ready(arrived))
        await asyncio.wait(
            (ready, self._watch), timeout=BOOT_LIMIT, return_when=asyncio.FIRST_COMPLETED
        )
        if not ready.done():
            ready.cancel()
            raise self._no_boot()
        self._link = await ready
        self._guard = asyncio.create_task(self._keep_watch())

    async def _ready(self, arrived: asyncio.Queue[Link]) -> Link:
        link = await arrived.get()
        hello = await link.hello
        if not hello.get("kvm"):
            raise LabError("the box has no /dev/kvm: " + self._last_words())
        return link

    def _no_boot(self) -> LabError:
        trouble = self.oops()
        if trouble:
            return LabError(f"the kernel in the box died: {console.headline(trouble)}")
        if self._watch.done():
            said = self._emulator.messages().splitlines()
            return LabError(
                f"the emulator ended (status {self._watch.result()}): "
                + (said[-1] if said else self._last_words())
            )
        return LabError(f"the box did not start within {BOOT_LIMIT:.0f} s: " + self._last_words())

    def _last_words(self) -> str:
        lines = self.console().split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    async def _keep_watch(self) -> None:
        status = await self._watch
        said = self._emulator.messages()
        self._death = f"the emulator ended with status {status}" + (f": {said}" if said else "")

    async def _stop(self) -> None:
        for server in getattr(self, "_servers", ()):
            server.close()
        if hasattr(self, "_guard"):
            self._guard.cancel()
        if hasattr(self, "_emulator"):
            await self._emulator.kill()
        if hasattr(self, "_link"):
            await self._link.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Sockets

    async def _forward(self, inside: str) -> Path:
        self._forwards += 1
        path = self._folder.path / f"to{self._forwards}"

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(LabError, OSError):
                await _join(Channel(self._link, {"connect": inside}), reader, writer)
            writer.close()

        self._servers.append(await asyncio.start_unix_server(accept, path))
        return path


async def _join(
    channel: Channel, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    # Bytes both ways; each direction ends on its own.
    async def inwards() -> None:
        while data := await reader.read(frames.CHUNK):
            if not await channel.write(data):
                return
        channel.end()

    task = asyncio.create_task(inwards())
    try:
        while True:
            kind, data = await channel.read()
            if kind in (LOST, frames.EXIT, frames.REFUSED):
                return
            if kind == frames.DATA:
                writer.write(data)
                await writer.drain()
            elif kind == frames.END:
                writer.write_eof()
    finally:
        channel.close()
        task.cancel()


def _version(command: list[str]) -> str:
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return result.stdout.partition("\n")[0].removeprefix("QEMU emulator version ")
