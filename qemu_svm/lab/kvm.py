"""The KVM of a box, for replays; the box is started again when its kernel has crashed."""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Self

from qemu_svm.diagnosis.oops import Oops, OopsReader
from qemu_svm.errors import EnvironmentFault, LabError, SvmStreamError
from qemu_svm.inside.kernel import NoTypes, copied_layout
from qemu_svm.inside.layout import Layout
from qemu_svm.kvm.agent import CRASHED, STUCK
from qemu_svm.kvm.device import KVM_PATH
from qemu_svm.lab.box.box import Box
from qemu_svm.lab.box.command import Command
from qemu_svm.lab.box.console import headline
from qemu_svm.lab.box.share import Share, discard, forget, limited_share
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.progress import SILENT, Progress
from qemu_svm.replay.memory import RamFile
from qemu_svm.replay.target import (
    POLL_SECONDS,
    SVM_STATE,
    JobResult,
    Json,
    Local,
    Probe,
    Results,
    Target,
    memory_description,
    read_probe,
    take,
    write_jobs,
)

_WARNINGS = 50
_WORDS = 2000  # characters of a message from the box
_STALLED = 120.0  # seconds without a result, beyond the timeout of a job
_MODULES = (
    *("errors.py", "kvm/__init__.py", "kvm/numbers.py", "kvm/layouts.py", "kvm/device.py"),
    *("kvm/run.py", "kvm/inside.py", "kvm/processes.py", "kvm/agent.py"),
)


@contextmanager
def replay_target(
    kernel: str | None,
    device: str | None,
    *,
    npt: bool = True,
    mirror: str | None = None,
    patch: Path | None = None,
    modules: tuple[Path, ...] = (),
    progress: Progress = SILENT,
) -> Iterator[Target]:
    """Open the KVM on which a replay is performed, for the time of the context.

    :param kernel: kernel of a box, which is started; None for this machine's KVM.
    :param device: path of this machine's KVM device; None for /dev/kvm.
    :param npt: load the box's ``kvm_amd`` with nested paging.
    :param mirror: Debian mirror for what is not in the cache yet.
    :param patch: build the box's KVM with it.
    :param modules: load these in the box.
    :raises Refused: the patch does not apply or compile, or a module does not fit.
    :raises EnvironmentFault: there is no KVM, or it does not support nested SVM state.
    """
    if kernel is not None:
        module = None
        if patch is not None or modules:
            from qemu_svm.lab.trial.subject import modules_for, subject_of

            module = modules_for(
                kernel, subject_of(patch, modules), mirror=mirror, progress=progress
            )
        files, types = ({}, None) if module is None else (module.files, module.types)

        def boot(share: Share) -> Box:
            return Box(
                kernel=kernel, npt=npt, share=share, mirror=mirror, modules=files,
                progress=progress,
            )  # fmt: skip

        with InBox(boot, types, foreign=bool(files)) as box:
            yield box
        return
    device = device or KVM_PATH
    with Local(device) as local:
        try:
            probe = local.probe()
        except EnvironmentFault as fault:
            raise EnvironmentFault(
                fault.what, hint="--lab 6.1 replays in a box, which has a KVM"
            ) from None
        if probe.nested_state != SVM_STATE:
            raise EnvironmentFault(
                f"{device} does not support nested SVM state: KVM_CAP_NESTED_STATE is "
                f"{probe.nested_state}, not {SVM_STATE}",
                hint="load kvm_amd with nested=1 on an AMD host, or use --lab 6.1",
            )
        yield local


class InBox:
    """The KVM of a box: a :class:`~qemu_svm.replay.target.Target`.  Use it with ``with``.

    :attr:`folder` is the directory for the files that the agent is given, :attr:`boots`
    how often a box was started.

    :param boot: makes a box with the given directory as its share; or a running box,
        which is not started again.
    :param types: BTF of kvm-amd, if it is not the kernel's own.
    :param foreign: the box has a foreign kernel or module: its share has a limit.
    """

    def __init__(
        self,
        boot: Callable[[Share], Box] | Box,
        types: bytes | None = None,
        *,
        foreign: bool = False,
    ) -> None:
        self._boot = None if isinstance(boot, Box) else boot
        self._types = types
        self._foreign = foreign
        self._held = boot if isinstance(boot, Box) else None
        self._inside = "/share"
        self._stack = ExitStack()
        self._running = ExitStack()
        self._box: Box | None = None
        self._probe: Probe | None = None
        self._layout: Layout | None = None
        self._copies: dict[str, str] = {}
        self._number = 0
        self._closed = False
        self._trouble = ""
        self._warnings: list[Oops] = []
        self.boots = 0

    def __enter__(self) -> Self:
        if self._foreign:
            self._share = self._stack.enter_context(limited_share())
            self.folder = self._share.path
            return self
        place = self._held.share if self._held is not None else None
        with host_faults("make a directory for a replay"):
            self.folder = Path(tempfile.mkdtemp(prefix="replay", dir=place))
        self._stack.callback(discard, self.folder)
        self._share = Share(self.folder)
        if place is not None:
            self._inside = f"/share/{self.folder.name}"
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()
        self._stack.close()

    def stop(self) -> None:
        """End the box for good; what another thread does with it fails."""
        self._closed = True
        self._halt()

    @property
    def box(self) -> Box:
        """The box, which is started if it does not run.

        :raises LabError: it does not start; or it crashed, and was not started here.
        """
        if self._closed:
            raise LabError("the box was closed")
        if self._box is None:
            with self._writing("write the agent"):
                pack_agent(self.folder / "agent.zip")
            self._box = self._start()
            self.boots += 1
        return self._box

    def _start(self) -> Box:
        if self._boot is not None:
            return self._running.enter_context(self._boot(self._share))
        assert self._held is not None
        if self.boots:
            raise LabError("the kernel in the box crashed; this box cannot be started again")
        return self._held

    @property
    def _environment(self) -> dict[str, str]:
        return {"PYTHONPATH": f"{self._inside}/agent.zip"}

    def _halt(self) -> None:
        if self._box is not None:
            self._trouble = self._box.oops() or ""
            self._warnings = self.warnings()
        self._box = None
        self._running.close()

    def trouble(self) -> str:
        """Return the oops that ended the last box; empty if it ended without one."""
        return self._trouble

    def warnings(self) -> list[Oops]:
        """Return what the kernels of all boxes so far warned of (WARN)."""
        reader = OopsReader(_WARNINGS)
        log = self._box.console() if self._box is not None else ""
        for number, line in enumerate(log.splitlines(), 1):
            reader.read(number, line)
        return self._warnings + [one for one in reader.found if one.kind == "WARN"]

    def _agent(self, *arguments: str) -> list[str]:
        return ["python3", "-m", "qemu_svm.kvm.agent", *arguments]

    def probe(self) -> Probe:
        """See :meth:`Target.probe`."""
        if self._probe is None:
            self._probe = read_probe(self._answer("probe"))
        return self._probe

    def layout(self) -> Layout:
        """See :meth:`Target.layout`."""
        if self._layout is None:
            with self._writing(f"make a directory in {self.folder}"):
                copies = Path(tempfile.mkdtemp(prefix="types", dir=self.folder))
            try:
                answer = self._answer("types", f"{self._inside}/{copies.name}")
                self._layout = self._layout_of(copies, answer)
            finally:
                discard(copies)
        return self._layout

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        # Write into the share, which a box may have filled.
        try:
            with host_faults(what):
                yield
        except LabError:
            if (full := self._share.full) is None:
                raise
            raise LabError(full) from None

    def _layout_of(self, folder: Path, answer: bytes) -> Layout:
        # A kernel without types of modules (5.10) has those of a module built like its own.
        try:
            return copied_layout(folder, answer, self._types)
        except NoTypes:
            from qemu_svm.lab.trial.workshop import own_types

            self._types = own_types(self.box.versions["kernel"])
            return copied_layout(folder, answer, self._types)

    def _answer(self, *arguments: str) -> bytes:
        done = self.box.run(self._agent(*arguments), timeout=120, env=self._environment)
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()
            raise LabError(self._share.full or f"in the box: {words[-_WORDS:]}")
        return done.stdout

    def perform(
        self, ram: RamFile, jobs: Sequence[Json], inside: Layout | None = None
    ) -> Iterator[JobResult]:
        """See :meth:`Target.perform`."""
        remaining = list(jobs)
        while remaining:
            self._number += 1
            given, back = (self.folder / f"{kind}{self._number}" for kind in ("jobs", "results"))
            place = f"{self._inside}/{self._placed(ram)}"
            memory = memory_description(ram, place, copied=True, inside=inside)
            with self._writing(f"write {given}"):
                write_jobs(given, memory, remaining)
            command = self.box.start(
                self._agent("perform", *(f"{self._inside}/{one.name}" for one in (given, back))),
                env=self._environment,
            )
            yield from self._results(command, Results(back), remaining)
            for path in (given, back):
                forget(path)

    def _placed(self, ram: RamFile) -> str:
        # Name of the RAM's file in the directory; it is copied if it is elsewhere.
        path = Path(ram.path)
        if path.parent == self.folder:
            return path.name
        name = self._copies.setdefault(ram.path, f"copy{len(self._copies)}")
        copy = self.folder / name
        if not copy.exists():
            with self._writing(f"write {copy}"), copy.open("wb") as out:
                for start, size in ram.extents(0, os.fstat(ram.fd).st_size):
                    out.seek(start)
                    out.write(os.pread(ram.fd, size, start))
        return name

    def _results(
        self, command: Command, results: Results, remaining: list[Json]
    ) -> Iterator[JobResult]:
        last = time.monotonic()
        wanted = len(remaining)
        ended = came = False
        while came or not ended:
            ended = not command.running()
            came, finished = results.more()
            if came:
                last = time.monotonic()
            for job in finished:
                take(remaining, job)
                yield self._after(job)
            if remaining and time.monotonic() - last > _STALLED + remaining[0]["timeout"]:
                break
            if not ended and not came:
                time.sleep(POLL_SECONDS)
        idle = len(remaining) == wanted
        yield from self._end(command, results, remaining, ended=ended, idle=idle)

    def _after(self, job: JobResult) -> JobResult:
        # A child that was killed by a signal may have damaged the kernel.
        if job.end.startswith("signal") and self._box is not None:
            time.sleep(POLL_SECONDS)
            job.host = self._box.oops()
        return job

    def _end(
        self,
        command: Command,
        results: Results,
        remaining: list[Json],
        *,
        ended: bool,
        idle: bool,
    ) -> Iterator[JobResult]:
        try:
            status = command.wait(1).returncode if ended else STUCK
        except SvmStreamError:
            status = STUCK
        trouble = self._box.oops() if self._box is not None else None
        if status == 0 and not remaining:
            return
        if status not in (STUCK, CRASHED) or (status == CRASHED and idle):
            words = command.wait(1).stderr.decode(errors="replace").strip().splitlines()
            raise LabError(
                self._share.full or f"the agent failed: {words[-1] if words else 'no message'}"
            )
        if status == STUCK or trouble:
            self._halt()
        if status == STUCK and remaining:
            lost = results.unfinished(remaining.pop(0)["id"])
            lost.end = "host"
            lost.host = headline(trouble) if trouble else "the host hangs"
            yield lost


def pack_agent(path: Path) -> None:
    """Write the modules that the agent needs into a zip file, for PYTHONPATH."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("qemu_svm/__init__.py", "")
        for name in _MODULES:
            archive.writestr(f"qemu_svm/{name}", (files("qemu_svm") / name).read_bytes())
