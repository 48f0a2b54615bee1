"""A box: an emulated AMD host with a real Linux, KVM and QEMU in it.

::

    with Box(kernel="6.1") as box:
        done = box.run(["uname", "-r"], timeout=30)
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.box import console
from qemu_svm.lab.box.emulator import Machine, arguments, program
from qemu_svm.lab.box.inside import frames
from qemu_svm.lab.box.life import Emulator
from qemu_svm.lab.box.link import Link
from qemu_svm.lab.box.proxy import Proxy
from qemu_svm.lab.box.session import Session
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import boot, build
from qemu_svm.lab.suites import catalogue as suites
from qemu_svm.lab.suites.cache import Built

#: Seconds until a box must have answered first; a loaded machine is slow.
BOOT_LIMIT = 240.0
#: Seconds without a sign of life after which a box counts as hanging.
SILENCE_LIMIT = 60.0
_PING_EVERY = 5.0
#: Bytes of the kernel's log after which a box counts as broken.
CONSOLE_LIMIT = 64 << 20
#: Seconds that the emulator may take to end once its line is cut.
_END_LIMIT = 5.0


class Box(Session):
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
    :param mirror: where to fetch what is not in the cache yet.
    :param progress: told what is being done.
    """

    def __init__(
        self,
        kernel: str = suites.DEFAULT_KERNEL,
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
        progress: Progress = SILENT,
    ) -> None:
        super().__init__()
        self._kernel = suites.of_kernel(kernel)
        self._user = self._kernel if qemu is None else suites.of_qemu(qemu)
        self._player = None if emulator is None else suites.of_qemu(emulator)
        self._machine = Machine(npt, cpu, smp, memory)
        self._emulator_args = tuple(emulator_args)
        self._own_share = share
        self._mirror = mirror
        self._progress = progress
        self._fault: str | None = None
        self._emulator: Emulator | None = None

    @property
    def pid(self) -> int:
        """Process id of the emulator."""
        assert self._emulator is not None
        return self._emulator.pid

    @property
    def console_file(self) -> Path:
        """The kernel's log, as it grows."""
        return self._console

    def serve(self) -> Path:
        """Make a UNIX socket at which other processes can use this box; return its path."""
        return self._call(self._serve())

    def wait(self) -> LabError:
        """Wait for the box to die; say why."""
        return self._call(self._wait())

    def _start(self) -> None:
        held: dict[str, Built] = {}
        for suite in (self._kernel, self._user, self._player):
            if suite is not None and suite.name not in held:
                using = build.using(suite, mirror=self._mirror, progress=self._progress)
                held[suite.name] = self._stack.enter_context(using)
        kernel, user = held[self._kernel.name], held[self._user.name]
        player = program(None if self._player is None else held[self._player.name])
        self._progress.step(f"starting Linux {kernel.manifest.release}")
        self._start_loop()
        run = self._folder.path
        share = self._own_share or run / "share"
        share.mkdir(exist_ok=True)
        command = [
            *player,
            *arguments(
                self._machine, boot.kernel(kernel), boot.initrd(kernel),
                root=user.root, share=share, run=run,
            ),
            *self._emulator_args,
        ]  # fmt: skip
        self._use(self._call(self._boot(command)), share, run / "console")
        self.versions = {
            "kernel": kernel.manifest.kernel,
            "qemu": user.manifest.qemu,
            "seabios": user.manifest.packages["seabios"],
            "emulator": _version(player),
        }

    async def _boot(self, command: list[str]) -> Link:
        run = self._folder.path
        self._console = run / "console"
        arrived: asyncio.Queue[Link] = asyncio.Queue()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            arrived.put_nowait(Link(reader, writer))

        self._servers.append(await asyncio.start_unix_server(accept, run / "agent"))
        self._emulator = Emulator(command, run / "emulator")
        end = asyncio.create_task(self._emulator.ended())
        ready = asyncio.create_task(self._ready(arrived))
        await asyncio.wait((ready, end), timeout=BOOT_LIMIT, return_when=asyncio.FIRST_COMPLETED)
        end.cancel()
        if not ready.done():
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)
            raise self._no_boot()
        link = await ready
        self._pulse = asyncio.create_task(self._feel(link))
        return link

    async def _ready(self, arrived: asyncio.Queue[Link]) -> Link:
        link = await arrived.get()
        try:
            hello = await link.hello
        except ConnectionError:
            raise await self.death() from None
        if not hello.get("kvm"):
            raise LabError(f"the box has no /dev/kvm: {self._last_words()}")
        return link

    def _no_boot(self) -> LabError:
        if self._status() is None and not self.oops():
            return LabError(
                f"the box did not start within {BOOT_LIMIT:.0f} s: {self._last_words()}"
            )
        return self._obituary()

    def _obituary(self) -> LabError:
        if trouble := self.oops():
            return LabError(f"the kernel in the box died: {console.headline(trouble)}")
        if self._fault:
            return LabError(self._fault)
        status = self._status()
        if status is None or self._emulator is None:
            return LabError("the box has cut its line")
        words = self._emulator.messages().splitlines()
        return LabError(
            f"the emulator ended (status {status}): {words[-1] if words else self._last_words()}"
        )

    def _status(self) -> int | None:
        return None if self._emulator is None else self._emulator.status

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.console().splitlines()]
        return next((line for line in reversed(lines) if line), "it said nothing")

    async def _feel(self, link: Link) -> None:
        # A kernel that hangs keeps its emulator running for ever; its agent falls silent.
        while not link.lost.is_set():
            link.send(frames.frame(0, frames.PING))
            await asyncio.sleep(_PING_EVERY)
            if self.loop.time() - link.heard > SILENCE_LIMIT:
                self._fault = f"the box hangs: no sign of life for {SILENCE_LIMIT:.0f} s"
            elif self._console.stat().st_size > CONSOLE_LIMIT:
                self._fault = f"the box was ended: its console has {CONSOLE_LIMIT >> 20} MiB"
            if self._fault and self._emulator is not None:
                await self._emulator.kill()
                return

    async def death(self) -> LabError:
        """Return the error that says why the box is not there (any more)."""
        assert self._emulator is not None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._emulator.ended(), _END_LIMIT)
        return self._obituary()

    async def _wait(self) -> LabError:
        await self._link.lost.wait()
        return await self.death()

    async def _serve(self) -> Path:
        path = self._folder.path / "line"
        proxy = Proxy(self._link, self.death)
        self._servers.append(await asyncio.start_unix_server(proxy.accept, path))
        return path

    async def _stop(self) -> None:
        if self._emulator is not None:
            await self._emulator.kill()
        await super()._stop()


def _version(command: list[str]) -> str:
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return result.stdout.partition("\n")[0].removeprefix("QEMU emulator version ")
