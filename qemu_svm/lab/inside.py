"""The vCPUs of a process inside a box, in the memory of the box's kernel."""

from __future__ import annotations

import json
import queue
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self

from qemu_svm.errors import EnvironmentFault, LabError
from qemu_svm.inside.host import Feed
from qemu_svm.inside.kernel import NoTypes, copied_layout
from qemu_svm.inside.layout import Layout
from qemu_svm.lab.box.command import Command
from qemu_svm.lab.box.session import BoxSession
from qemu_svm.lab.box.share import discard
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.kvm import pack_agent

Json = dict[str, Any]

_ANSWER = 60.0  # seconds for one look; the first reads /proc/kallsyms, which is slow in a box
_START = 120.0  # seconds for the types, which are copied
_LINE, _LINES = 8 << 20, 16  # bytes of an answer; answers that wait
_SHARE = "/share"


class BoxHost:
    """A box; see :class:`qemu_svm.inside.host.Host`.  Use it with ``with``.

    :param session: of a box that is up.
    :param modules: files of modules that are loaded in place of the kernel's, by name.
    """

    def __init__(self, session: BoxSession, modules: Mapping[str, str] | None = None) -> None:
        self._box = session
        self._modules = modules or {}

    def __enter__(self) -> Self:
        with host_faults("make a directory in the box's share"):
            self._folder = Path(mkdtemp(prefix="inside", dir=self._box.share))
        try:
            with host_faults("write the agent"):
                pack_agent(self._folder / "agent.zip")
        except BaseException:
            discard(self._folder)
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        discard(self._folder)

    @property
    def _inside(self) -> str:
        return f"{_SHARE}/{self._folder.name}"

    def _agent(self, *arguments: str) -> dict[str, Any]:
        return {
            "argv": ["python3", "-m", "qemu_svm.kvm.agent", *arguments],
            "env": {"PYTHONPATH": f"{self._inside}/agent.zip"},
        }

    def kernel(self) -> str:
        """See :meth:`Host.kernel`."""
        return str(self._box.versions["kernel"])

    @cached_property
    def _types(self) -> tuple[Path, bytes]:
        # Where the kernel's types were copied to, and what the agent said about them.
        folder = self._folder / f"types{secrets.token_hex(4)}"
        with host_faults(f"make a directory in {self._folder}"):
            folder.mkdir()
        agent = self._agent("types", f"{self._inside}/{folder.name}")
        done = self._box.run(**agent, timeout=_START)
        if done.returncode:
            raise LabError("in the box: " + done.stderr.decode(errors="replace").strip())
        return folder, done.stdout

    @cached_property
    def _layout(self) -> Layout:
        try:
            return copied_layout(*self._types)
        except NoTypes:
            return copied_layout(*self._types, self._made_types())

    def _made_types(self) -> bytes:
        # Of a module that is not the kernel's, or of a kernel without types of modules.
        amd = self._modules.get("kvm-amd.ko")
        if amd is None:
            from qemu_svm.lab.trial.workshop import own_types

            return own_types(self.kernel())
        from qemu_svm.lab.trial.subject import TYPES_BESIDE

        try:
            return Path(amd + TYPES_BESIDE).read_bytes()
        except OSError:
            raise EnvironmentFault(
                "the types of the box's kvm-amd are not known: it is a module without debug "
                "information",
                hint="build it with CONFIG_DEBUG_INFO",
            ) from None

    def layout(self) -> Layout:
        """See :meth:`Host.layout`."""
        return self._layout

    def processes(self) -> list[Json]:
        """See :meth:`Host.processes`."""
        try:
            found = json.loads(self._types[1])["processes"]
            return [{"pid": int(one["pid"]), "name": str(one["name"])} for one in found]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EnvironmentFault("the agent's list of processes cannot be read") from None

    @contextmanager
    def feed(self, pid: int, layout: Layout) -> Iterator[Feed]:
        """See :meth:`Host.feed`."""
        lines = _Lines()
        command = self._box.start(**self._agent("watch", str(pid)), stdin=True, sink=lines.take)
        try:
            command.send(json.dumps(layout.map, separators=(",", ":")).encode() + b"\n")
            yield _BoxFeed(command, lines)
        finally:
            command.kill()


class _Lines:
    # What a command in the box writes, line by line; it is hostile input.
    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._rest = b""
        self.errors = b""

    def take(self, stream: int, data: bytes) -> None:
        if stream == 2:
            self.errors = (self.errors + data)[-4096:]
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE:
            self._rest = b""
            lines.append(b"")  # not JSON: the reader says so
        for line in lines:
            if self._queue.qsize() < _LINES:  # each answers a question
                self._queue.put(line)

    def next(self, timeout: float) -> bytes | None:
        try:
            return self._queue.get(timeout=timeout)
        except queue.Empty:
            return None


class _BoxFeed:
    def __init__(self, command: Command, lines: _Lines) -> None:
        self._command = command
        self._lines = lines

    def look(self) -> list[Json]:
        """See :meth:`Feed.look`."""
        self._command.send(b"\n")
        waited, line = 0.0, self._lines.next(0.05)
        while line is None:
            if not self._command.running():
                line = self._lines.next(0.05)
                if line is None:
                    words = self._lines.errors.decode(errors="replace").strip().splitlines()
                    raise EnvironmentFault(
                        f"in the box: {words[-1] if words else 'the agent ended without a word'}"
                    )
                break
            waited += 0.05
            if waited > _ANSWER:
                raise LabError(f"the box did not answer within {_ANSWER:g} s")
            line = self._lines.next(0.05)
        try:
            found = json.loads(line)
            if "gone" in found:
                raise EnvironmentFault(str(found["gone"]))
            return list(found["vcpus"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise EnvironmentFault("a look into kernel memory cannot be read: no JSON") from None
