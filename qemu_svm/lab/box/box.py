"""A box: an emulated AMD host with a real Linux, KVM and QEMU in it.

::

    with Box(kernel="6.1") as box:
        done = box.run(["uname", "-r"], timeout=30)
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.box import boot, console
from qemu_svm.lab.box.emulator import Machine, arguments, program
from qemu_svm.lab.box.inside import frames
from qemu_svm.lab.box.life import Emulator
from qemu_svm.lab.box.link import Link
from qemu_svm.lab.box.proxy import Proxy
from qemu_svm.lab.box.session import BoxSession
from qemu_svm.lab.box.share import Share, limited_share
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.lab.suites import build, kernels
from qemu_svm.lab.suites import catalogue as suites
from qemu_svm.lab.suites.cache import Built
from qemu_svm.lab.suites.own import own_kernel

BOOT_LIMIT = 240.0
"""Seconds from the start of the emulator to the agent's first frame."""

SILENCE_LIMIT = 60.0
"""Seconds without a frame of the agent after which a box counts as hung."""

CONSOLE_LIMIT = 64 << 20
"""Bytes of the kernel's log after which a box counts as broken."""

_HEARTBEAT_SECONDS = 5.0
_END_LIMIT = 5.0  # seconds from the loss of the connection to the end of the emulator


class Box(BoxSession):
    """An emulated AMD host.  Use it with ``with``.

    :param kernel: its kernel: a suite's by its line (5.10, 6.1, 6.12, 7.2), or another one
        by its version, such as 6.12.105; see :func:`qemu_svm.lab.suites.kernels.wanted`.
    :param qemu: release line of the QEMU inside and of the user land that comes with it:
        5.2, 7.2, 10.0, 11.1; by default that of the kernel's suite, or of the suite with the
        next older kernel.
    :param npt: load ``kvm_amd`` with nested paging.
    :param cpu, smp, memory: of the emulated host; memory in MiB.
    :param emulator: release line of the emulator, from the cache; None for the host's
        ``qemu-system-x86_64``.
    :param emulator_args: further arguments of the emulator.
    :param share: a directory of the host to be mounted as ``/share`` inside; by default a
        temporary one.  A box with ``own`` or ``modules`` has one with a limit, and no other.
    :param own: image and modules of a kernel that is no package, in place of ``kernel``;
        see :func:`qemu_svm.lab.suites.own.own_kernel`.
    :param modules: modules to load in place of the kernel's, by file name (``kvm-amd.ko``):
        their content, or the file that has it.
    :param words: on the kernel's command line, besides the usual ones.
    :param mirror: Debian mirror for what is not in the cache yet.
    :param progress: is notified of each step.
    :raises LabError: no such QEMU, or a share that this box cannot have; on entering, it cannot
        be had, built or started.
    :raises PlanError: ``kernel`` does not name a kernel.
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
        share: Path | Share | None = None,
        mirror: str | None = None,
        own: tuple[Path, Path] | None = None,
        modules: Mapping[str, bytes | Path] | None = None,
        words: Sequence[str] = (),
        progress: Progress = SILENT,
    ) -> None:
        super().__init__()
        self._own = None if own is None else own_kernel(*own)
        self._kernel = kernels.wanted(kernel)
        self._user = self._user_land() if qemu is None else suites.of_qemu(qemu)
        self._emulator_suite = None if emulator is None else suites.of_qemu(emulator)
        self._machine = Machine(npt, cpu, smp, memory, tuple(words))
        self._emulator_args = tuple(emulator_args)
        self._own_share = Share(share) if isinstance(share, Path) else share
        self._foreign = bool(modules) or own is not None
        if self._foreign and self._own_share is not None and not self._own_share.limited:
            raise LabError(
                "a box with a foreign kernel or module has a share of its own only",
                hint="without --share; copy files to and from its own, which `lab list` names",
            )
        self._mirror = mirror
        self._modules = modules
        self._progress = progress
        self._fault: str | None = None
        self._emulator: Emulator | None = None
        self._agent: Link | None = None

    @property
    def pid(self) -> int:
        """Process id of the emulator."""
        assert self._emulator is not None
        return self._emulator.pid

    @property
    def console_file(self) -> Path:
        """The file that the kernel's log is written to."""
        return self._console

    def serve(self) -> Path:
        """Create a UNIX socket through which other processes can use this box; return its path.

        :raises LabError: the socket cannot be created.
        """
        return self._call(self._serve())

    def wait(self) -> LabError:
        """Wait until the box dies; return the error that reports why."""
        return self._call(self._wait())

    def _start(self) -> None:
        held: dict[build.What, Built] = {}
        wanted = None if self._own else self._kernel
        for what in (wanted, self._user, self._emulator_suite):
            if what is not None and what not in held:
                using = build.using(what, mirror=self._mirror, progress=self._progress)
                held[what] = self._stack.enter_context(using)
        kernel, user = self._own or held[self._kernel], held[self._user]
        own = self._emulator_suite
        emulator = program(None if own is None else held[own])
        self._progress.step(f"starting Linux {kernel.manifest.release}")
        self._start_loop()
        run = self._folder.path
        share = self._made_share(run / "share")
        initrd = boot.initrd(kernel, user, _contents(self._modules))
        command = [
            *emulator,
            *arguments(
                self._machine, boot.kernel(kernel), initrd, root=user.root, share=share, run=run,
            ),
            *self._emulator_args,
        ]  # fmt: skip
        self._use(self._call(self._boot(command)), share.path, run / "console")
        self.versions = {
            "kernel": kernel.manifest.kernel,
            "qemu": user.manifest.qemu,
            "seabios": user.manifest.packages["seabios"],
            "emulator": _version(emulator),
        }

    def _made_share(self, path: Path) -> Share:
        if self._foreign:
            return self._own_share or self._stack.enter_context(limited_share())
        share = self._own_share or Share(path)
        with host_faults(f"make the share {share.path}"):
            share.path.mkdir(exist_ok=True)
        return share

    def _user_land(self) -> suites.Suite:
        if self._own is None:
            return kernels.user_land(self._kernel)
        release = self._own.manifest.release
        return kernels.user_land(kernels.Wanted(release, kernels.order_of(release)))

    async def _boot(self, command: list[str]) -> Link:
        run = self._folder.path
        self._console = run / "console"
        arrived: asyncio.Queue[Link] = asyncio.Queue()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            arrived.put_nowait(Link(reader, writer))

        with host_faults("start the emulator"):
            self._servers.append(await asyncio.start_unix_server(accept, run / "agent"))
            self._emulator = Emulator(command, run / "emulator")
        end = asyncio.create_task(self._emulator.ended())
        ready = asyncio.create_task(self._ready(arrived))
        await asyncio.wait((ready, end), timeout=BOOT_LIMIT, return_when=asyncio.FIRST_COMPLETED)
        end.cancel()
        if not ready.done():
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)
            raise self._not_booted()
        link = await ready
        self._heartbeat = asyncio.create_task(self._watchdog(link))
        return link

    async def _ready(self, arrived: asyncio.Queue[Link]) -> Link:
        self._agent = link = await arrived.get()
        try:
            hello = await link.hello
        except ConnectionError:
            raise await self.cause_of_death() from None
        if not hello.get("kvm"):
            raise LabError(f"the box has no /dev/kvm: {self._last_console_line()}")
        return link

    def _not_booted(self) -> LabError:
        if self._status() is None and not self.oops():
            return LabError(
                f"the box did not start within {BOOT_LIMIT:.0f} s: {self._last_console_line()}"
            )
        return self._died()

    def _died(self) -> LabError:
        if trouble := self.oops():
            return LabError(f"the kernel in the box crashed: {console.headline(trouble)}")
        if self._fault:
            return LabError(self._fault)
        if self._agent is not None and self._agent.violation is not None:
            return LabError(f"the box violates the protocol: {self._agent.violation}")
        status = self._status()
        if status is None or self._emulator is None:
            return LabError("the box closed the connection")
        lines = self._emulator.messages().splitlines()
        last = lines[-1] if lines else self._last_console_line()
        return LabError(f"the emulator ended (status {status}): {last}")

    def _status(self) -> int | None:
        return None if self._emulator is None else self._emulator.status

    def _last_console_line(self) -> str:
        lines = [line.strip() for line in self.console().splitlines()]
        return next((line for line in reversed(lines) if line), "its console is empty")

    async def _watchdog(self, link: Link) -> None:
        # The emulator of a hung kernel runs for ever, but its agent does not answer.
        loop = asyncio.get_running_loop()
        while not link.lost.is_set():
            link.send(frames.frame(0, frames.PING))
            await asyncio.sleep(_HEARTBEAT_SECONDS)
            if loop.time() - link.last_heard > SILENCE_LIMIT:
                self._fault = f"the box hangs: no answer for {SILENCE_LIMIT:.0f} s"
            elif self._console.stat().st_size > CONSOLE_LIMIT:
                self._fault = f"the box was ended: its console exceeds {CONSOLE_LIMIT >> 20} MiB"
            if self._fault and self._emulator is not None:
                await self._emulator.kill()
                return

    async def cause_of_death(self) -> LabError:
        """Return the error that reports why the box has died."""
        assert self._emulator is not None
        if self._agent is not None and self._agent.violation is not None:
            await self._emulator.kill()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._emulator.ended(), _END_LIMIT)
        return self._died()

    async def _wait(self) -> LabError:
        await self._link.lost.wait()
        return await self.cause_of_death()

    async def _serve(self) -> Path:
        path = self._folder.path / "line"
        proxy = Proxy(self._link, self.cause_of_death)
        with host_faults("create a socket"):
            self._servers.append(await asyncio.start_unix_server(proxy.accept, path))
        return path

    async def _stop(self) -> None:
        if self._emulator is not None:
            await self._emulator.kill()
        await super()._stop()


def _contents(modules: Mapping[str, bytes | Path] | None) -> dict[str, bytes]:
    with host_faults("read a module"):
        return {
            name: content if isinstance(content, bytes) else Path(content).read_bytes()
            for name, content in (modules or {}).items()
        }


def _version(command: list[str]) -> str:
    with host_faults("run the emulator"):
        result = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, check=False
        )
    return result.stdout.partition("\n")[0].removeprefix("QEMU emulator version ")
