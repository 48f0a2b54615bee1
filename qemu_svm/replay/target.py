"""Where jobs are performed: the KVM of this machine; one in a box is :mod:`qemu_svm.lab.kvm`.

Both run the same agent (:mod:`qemu_svm.kvm.agent`) as a process next to the KVM
and read its results from a file, so that the steps before a hang or a crash are
known.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.kernel import copied_layout
from qemu_svm.inside.layout import Layout
from qemu_svm.kvm import layouts
from qemu_svm.kvm.agent import CRASHED, STUCK
from qemu_svm.kvm.device import KVM_PATH
from qemu_svm.replay.memory import RamFile
from qemu_svm.x86.cpuid import Cpuid
from qemu_svm.x86.cpuid_entries import Entry, features

Json = dict[str, Any]

SVM_STATE = layouts.NESTED_STATE_SIZE
"""KVM_CAP_NESTED_STATE of an AMD host with nested virtualisation."""
_CHUNK = 1 << 20  # bytes of answers that are read at once
_ANSWER = 16 << 20  # bytes that the agent may answer to one job
_END = re.compile(r"done|failed|timeout|stuck|signal \d{1,3}")
POLL_SECONDS = 0.05
"""Interval at which the file of results is read."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A KVM: its kernel, and the CPUID that it supports."""

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
class JobResult:
    """The result of a job.

    :param steps: the agent's lines, one for each finished step.
    :param end: ``done``, ``timeout``, ``signal N``, ``failed``, or ``host`` if the
        host kernel hung or crashed.
    :param host: the host kernel's last message, if it crashed or hung.
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
        """Directory for the agent's files."""
        ...

    def probe(self) -> Probe:
        """Return the kernel and CPUID of the KVM; they are read once.

        :raises EnvironmentFault: there is no KVM.
        """
        ...

    def layout(self) -> Layout:
        """Return where a vCPU's parts are in this kernel's memory; it is found once.

        :raises EnvironmentFault: the kernel does not say so.
        """
        ...

    def perform(
        self, ram: RamFile, jobs: Sequence[Json], inside: Layout | None = None
    ) -> Iterator[JobResult]:
        """Perform jobs, in order; each has one result, even if the host crashes.

        :param inside: look into the kernel's memory after each step.
        :raises EnvironmentFault: that is not possible.
        """
        ...


def read_probe(text: bytes) -> Probe:
    """Read what ``python -m qemu_svm.kvm.agent probe`` prints.

    :raises EnvironmentFault: it is something else.
    """
    try:
        found: Json = json.loads(text)
        return Probe(
            str(found["release"]),
            str(found["version"]),
            int(found["nested_state"]),
            bool(found["sregs2"]),
            layouts.unpack_cpuid(bytes.fromhex(found["cpuid"])),
        )
    except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise EnvironmentFault(
            f"the agent's answer about the KVM cannot be read: {error}"
        ) from None


def memory_description(
    ram: RamFile, place: str, *, copied: bool, inside: Layout | None = None
) -> Json:
    """Return the first line of the agent's input: the guest's memory.

    :param place: path of the RAM's file for the agent.
    :param inside: the kernel's memory is read as well.
    :param copied: name the extents that hold data, so that holes need not be read.
    """
    regions = []
    for address, size, offset in ram.ranges:
        region: Json = {"address": address, "size": size, "file": place, "offset": offset}
        if copied:
            region["extents"] = [[start - offset, length] for start, length in
                                 ram.extents(offset, size)]  # fmt: skip
        regions.append(region)
    return {"memory": regions} | ({} if inside is None else {"inside": inside.map})


def write_jobs(path: Path, description: Json, jobs: Sequence[Json]) -> None:
    """Write the agent's input: the memory, then one job per line."""
    with path.open("w", encoding="ascii") as out:
        for line in (description, *jobs):
            out.write(json.dumps(line, separators=(",", ":")) + "\n")


def _line(text: bytes) -> Json:
    # A kernel under test may have damaged what the agent wrote.
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EnvironmentFault(f"the agent's answer cannot be read: {error}") from None
    kinds = {"id": str, "end": str, "error": str, "state": dict, "step": int}
    if (
        not isinstance(line, dict)
        or "id" not in line
        or not {"end", "error", "state"} & set(line)
        or any(not isinstance(line[name], kind) for name, kind in kinds.items() if name in line)
        or not _END.fullmatch(line.get("end", "done"))
    ):
        raise EnvironmentFault("the agent's answer cannot be read: it is not about a job")
    return line


def take(remaining: list[Json], job: JobResult) -> None:
    """Remove the first of the jobs that are expected, which a result must be of.

    :raises EnvironmentFault: it is of another one.
    """
    if not remaining or remaining[0]["id"] != job.id:
        raise EnvironmentFault("the agent's answer cannot be read: it is about another job")
    remaining.pop(0)


class Results:
    """Reads the agent's lines as they arrive, by job.

    :param path: the file of results; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._rest = b""
        self._since = 0  # bytes since the last end of a job
        self._current: dict[str, JobResult] = {}

    def more(self) -> tuple[bool, list[JobResult]]:
        """Return whether there was more, and the jobs that ended; at most a part is read.

        :raises EnvironmentFault: it is not what an agent writes, or too much for a job.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_CHUNK)
        except FileNotFoundError:
            return False, []
        except OSError as error:
            raise EnvironmentFault(f"the agent's answer cannot be read: {error.strerror}") from None
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        ended = []
        for text in lines:
            self._since += len(text)
            line = _line(text)
            job = self._current.setdefault(line["id"], JobResult(line["id"]))
            if "end" in line:
                job.end = line["end"]
                ended.append(self._current.pop(line["id"]))
                self._since = 0
            elif "error" in line:
                job.error = line["error"]
            else:
                job.steps.append(line)
        if self._since + len(self._rest) > _ANSWER:
            raise EnvironmentFault(f"the agent answered more than {_ANSWER >> 20} MiB to one job")
        return bool(data), ended

    def unfinished(self, identity: str) -> JobResult:
        """Return what is known of a job that did not end."""
        return self._current.pop(identity, JobResult(identity))


class Local:
    """The KVM of this machine.

    :param path: its device.
    """

    def __init__(self, path: str = KVM_PATH) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        self._probe: Probe | None = None
        self._layout: Layout | None = None
        self._number = 0

    def __enter__(self) -> Self:
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="replay")))
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stack.close()

    def _agent(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "qemu_svm.kvm.agent", *arguments]

    def probe(self) -> Probe:
        """See :meth:`Target.probe`."""
        if self._probe is None:
            self._probe = read_probe(self._answer(*self._agent("probe"), self._path))
        return self._probe

    def layout(self) -> Layout:
        """See :meth:`Target.layout`."""
        if self._layout is None:
            answer = self._answer(*self._agent("types"), str(self.folder))
            self._layout = copied_layout(self.folder, answer)
        return self._layout

    def _answer(self, *command: str) -> bytes:
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            raise EnvironmentFault(done.stderr.decode(errors="replace").strip())
        return done.stdout

    def perform(
        self, ram: RamFile, jobs: Sequence[Json], inside: Layout | None = None
    ) -> Iterator[JobResult]:
        """See :meth:`Target.perform`."""
        remaining = list(jobs)
        while remaining:
            self._number += 1
            given, back = (self.folder / f"{kind}{self._number}" for kind in ("jobs", "results"))
            memory = memory_description(ram, ram.path, copied=False, inside=inside)
            write_jobs(given, memory, remaining)
            with subprocess.Popen(
                self._agent("perform", str(given), str(back), self._path), stderr=subprocess.PIPE
            ) as agent:
                try:
                    yield from self._results(agent, Results(back), remaining)
                finally:
                    agent.kill()

    def _results(
        self, agent: subprocess.Popen[bytes], results: Results, remaining: list[Json]
    ) -> Iterator[JobResult]:
        ended = came = False
        while came or not ended:
            ended = agent.poll() is not None
            came, finished = results.more()
            for job in finished:
                take(remaining, job)
                yield job
            if not ended and not came:
                time.sleep(POLL_SECONDS)
        if agent.returncode not in (0, CRASHED, STUCK):
            assert agent.stderr is not None
            words = agent.stderr.read().decode(errors="replace").strip().splitlines()
            raise EnvironmentFault(f"the agent failed: {words[-1] if words else 'no message'}")
