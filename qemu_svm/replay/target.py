"""Where jobs are performed: this machine's KVM, or one in a box.

Both run the same agent (:mod:`qemu_svm.kvm.agent`) as a process beside the KVM
and read its results from a file, so that what was done before a hang or a crash
is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import qemu_svm
from qemu_svm.errors import EnvironmentFault, LabError, SvmStreamError
from qemu_svm.kvm import layouts
from qemu_svm.kvm.device import KVM_PATH
from qemu_svm.lab import Box
from qemu_svm.lab.box.command import Command
from qemu_svm.lab.box.console import headline
from qemu_svm.replay.cpuid import Entry, features
from qemu_svm.replay.memory import Ram
from qemu_svm.x86.cpuid import Cpuid

Json = dict[str, Any]

SVM_STATE = layouts.NESTED_STATE_SIZE
"""What KVM_CAP_NESTED_STATE gives on an AMD host with nesting."""
_STALLED = 120.0  # seconds without a result, beyond what a job may take
_POLL = 0.05
_STUCK, _CRASHED = 3, 5  # exit statuses of the agent
_MODULES = ("__init__", "errors", "kvm/__init__") + tuple(
    f"kvm/{name}" for name in ("numbers", "layouts", "device", "run", "agent")
)


@dataclass(frozen=True, slots=True)
class Probe:
    """A KVM: its kernel, and the CPUID that it can give a guest."""

    release: str
    version: str
    nested_state: int
    sregs2: bool
    cpuid: Sequence[Entry]

    @property
    def features(self) -> Cpuid:
        """The CPUID as the model knows it."""
        return features(self.cpuid)


@dataclass
class Performed:
    """What came out of a job.

    :param steps: the agent's lines, one a step that was finished.
    :param end: ``done``, ``timeout``, ``signal N``, ``failed``, or ``host`` if the
        host kernel itself hung or died.
    :param host: the host kernel's last words, if it complained.
    """

    id: str
    steps: list[Json] = field(default_factory=list)
    end: str = ""
    host: str | None = None
    error: str | None = None


class Target(Protocol):
    """A KVM that performs jobs."""

    @property
    def folder(self) -> Path:
        """Folder for the files that the agent is given."""
        ...

    def probe(self) -> Probe:
        """Tell what KVM this is.

        :raises EnvironmentFault: there is none.
        """
        ...

    def perform(self, ram: Ram, jobs: Sequence[Json]) -> Iterator[Performed]:
        """Perform jobs, in order; each gives one result, whatever happens."""
        ...


def _probed(text: bytes) -> Probe:
    found: Json = json.loads(text)
    return Probe(
        found["release"],
        found["version"],
        found["nested_state"],
        bool(found["sregs2"]),
        layouts.unpack_cpuid(bytes.fromhex(found["cpuid"])),
    )


def _description(ram: Ram, place: str, *, copied: bool) -> Json:
    # The first line of the agent's input.
    regions = []
    for address, size, offset in ram.ranges:
        region: Json = {"address": address, "size": size, "file": place, "offset": offset}
        if copied:
            region["extents"] = [[start - offset, length] for start, length in
                                 ram.extents(offset, size)]  # fmt: skip
        regions.append(region)
    return {"memory": regions}


def _write_jobs(path: Path, description: Json, jobs: Sequence[Json]) -> None:
    with path.open("w", encoding="ascii") as out:
        for line in (description, *jobs):
            out.write(json.dumps(line, separators=(",", ":")) + "\n")


class _Results:
    # Reads the agent's lines as they come, and sorts them by job.
    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""
        self._current: dict[str, Performed] = {}

    def more(self) -> tuple[bool, list[Performed]]:
        """Whether anything came, and the jobs that ended."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return False, []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        ended = []
        for text in lines:
            line = json.loads(text)
            job = self._current.setdefault(line["id"], Performed(line["id"]))
            if "end" in line:
                job.end = line["end"]
                ended.append(self._current.pop(line["id"]))
            elif "error" in line:
                job.error = line["error"]
            else:
                job.steps.append(line)
        return bool(data), ended

    def unfinished(self, identity: str) -> Performed:
        """What is known of a job that did not end."""
        return self._current.pop(identity, Performed(identity))


class Local:
    """The KVM of this machine.

    :param path: its device.
    """

    def __init__(self, path: str = KVM_PATH) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        self._number = 0

    def __enter__(self) -> Self:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="replay")))
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def _agent(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "qemu_svm.kvm.agent", *arguments, self._path]

    def probe(self) -> Probe:
        """See :meth:`Target.probe`."""
        done = subprocess.run(self._agent("probe"), capture_output=True, check=False)
        if done.returncode:
            raise EnvironmentFault(done.stderr.decode(errors="replace").strip())
        return _probed(done.stdout)

    def perform(self, ram: Ram, jobs: Sequence[Json]) -> Iterator[Performed]:
        """See :meth:`Target.perform`."""
        remaining = list(jobs)
        while remaining:
            self._number += 1
            given, back = (self.folder / f"{kind}{self._number}" for kind in ("jobs", "results"))
            _write_jobs(given, _description(ram, ram.path, copied=False), remaining)
            with subprocess.Popen(
                self._agent("perform", str(given), str(back)), stderr=subprocess.PIPE
            ) as agent:
                try:
                    yield from self._results(agent, _Results(back), remaining)
                finally:
                    agent.kill()

    def _results(
        self, agent: subprocess.Popen[bytes], results: _Results, remaining: list[Json]
    ) -> Iterator[Performed]:
        ended = False
        while not ended:
            ended = agent.poll() is not None
            for job in results.more()[1]:
                remaining.pop(0)
                yield job
            if not ended:
                time.sleep(_POLL)
        if agent.returncode not in (0, _CRASHED, _STUCK):
            assert agent.stderr is not None
            words = agent.stderr.read().decode(errors="replace").strip().splitlines()
            raise EnvironmentFault(f"the agent failed: {words[-1] if words else 'it said nothing'}")


class InBox:
    """The KVM of a box, which is started again when its kernel has died.

    :param boot: makes a box with the given folder as its share; or a box that runs,
        and is not started again.
    """

    def __init__(self, boot: Callable[[Path], Box] | Box) -> None:
        self._boot = None if isinstance(boot, Box) else boot
        self._held = boot if isinstance(boot, Box) else None
        self._inside = "/share"
        self._stack = contextlib.ExitStack()
        self._running = contextlib.ExitStack()
        self._box: Box | None = None
        self._copies: dict[str, str] = {}
        self._number = 0
        self.boots = 0

    def __enter__(self) -> Self:
        share = self._held.share if self._held is not None else None
        made = tempfile.TemporaryDirectory(prefix="replay", dir=share)
        self.folder = Path(self._stack.enter_context(made))
        if share is not None:
            self._inside = f"/share/{self.folder.name}"
        return self

    def __exit__(self, *_exception: object) -> None:
        self._halt()
        self._stack.close()

    @property
    def box(self) -> Box:
        """The box; started if it does not run."""
        if self._box is None:
            pack_agent(self.folder / "agent.zip")
            self._box = self._start()
            self.boots += 1
        return self._box

    def _start(self) -> Box:
        if self._boot is not None:
            return self._running.enter_context(self._boot(self.folder))
        assert self._held is not None
        if self.boots:
            raise LabError("the kernel in the box died, and it is not ours to start again")
        return self._held

    @property
    def _environment(self) -> dict[str, str]:
        return {"PYTHONPATH": f"{self._inside}/agent.zip"}

    def _halt(self) -> None:
        self._box = None
        self._running.close()

    def _agent(self, *arguments: str) -> list[str]:
        return ["python3", "-m", "qemu_svm.kvm.agent", *arguments]

    def probe(self) -> Probe:
        """See :meth:`Target.probe`."""
        done = self.box.run(self._agent("probe"), timeout=120, env=self._environment)
        if done.returncode:
            raise LabError("in the box: " + done.stderr.decode(errors="replace").strip())
        return _probed(done.stdout)

    def perform(self, ram: Ram, jobs: Sequence[Json]) -> Iterator[Performed]:
        """See :meth:`Target.perform`."""
        remaining = list(jobs)
        while remaining:
            self._number += 1
            given, back = (self.folder / f"{kind}{self._number}" for kind in ("jobs", "results"))
            inside = f"{self._inside}/{self._placed(ram)}"
            _write_jobs(given, _description(ram, inside, copied=True), remaining)
            command = self.box.start(
                self._agent("perform", *(f"{self._inside}/{one.name}" for one in (given, back))),
                env=self._environment,
            )
            yield from self._results(command, _Results(back), remaining)
            given.unlink()
            back.unlink(missing_ok=True)

    def _placed(self, ram: Ram) -> str:
        # Name of the RAM's file in the folder; it is copied if it lies elsewhere.
        path = Path(ram.path)
        if path.parent == self.folder:
            return path.name
        name = self._copies.setdefault(ram.path, f"copy{len(self._copies)}")
        copy = self.folder / name
        if not copy.exists():
            with copy.open("wb") as out:
                for start, size in ram.extents(0, os.fstat(ram.fd).st_size):
                    out.seek(start)
                    out.write(os.pread(ram.fd, size, start))
        return name

    def _results(
        self, command: Command, results: _Results, remaining: list[Json]
    ) -> Iterator[Performed]:
        last = time.monotonic()
        ended = False
        while not ended:
            ended = not command.running()
            came, finished = results.more()
            if came:
                last = time.monotonic()
            for job in finished:
                remaining.pop(0)
                yield self._after(job)
            if remaining and time.monotonic() - last > _STALLED + remaining[0]["timeout"]:
                break
            if not ended:
                time.sleep(_POLL)
        yield from self._end(command, results, remaining, ended=ended)

    def _after(self, job: Performed) -> Performed:
        # A child that was killed may have taken a part of the kernel with it.
        if job.end.startswith("signal") and self._box is not None:
            time.sleep(_POLL)
            job.host = self._box.oops()
        return job

    def _end(
        self, command: Command, results: _Results, remaining: list[Json], *, ended: bool
    ) -> Iterator[Performed]:
        assert self._box is not None
        try:
            status = command.wait(1).returncode if ended else _STUCK
        except SvmStreamError:
            status = _STUCK
        trouble = self._box.oops()
        if status == 0 and not remaining:
            return
        if status == _STUCK and remaining:
            lost = results.unfinished(remaining.pop(0)["id"])
            lost.end = "host"
            lost.host = headline(trouble) if trouble else "the host hangs"
            yield lost
        elif status not in (_STUCK, _CRASHED):
            words = command.wait(1).stderr.decode(errors="replace").strip().splitlines()
            raise LabError(f"the agent failed: {words[-1] if words else 'it said nothing'}")
        if status == _STUCK or trouble:
            self._halt()


def pack_agent(path: Path) -> None:
    """Write the modules that the agent needs into a file that Python can import from."""
    root = Path(qemu_svm.__file__).parent
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in _MODULES:
            archive.write(root / f"{name}.py", f"qemu_svm/{name}.py")
