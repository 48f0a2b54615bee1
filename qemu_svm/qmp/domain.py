"""A libvirt domain as a QMP connection.

libvirt owns the QMP socket of its QEMU, which serves one client at a time.  Commands
therefore go through libvirt (``virDomainQemuMonitorCommandWithFiles``), descriptors with
them, and QEMU's events come back (``virConnectDomainQemuMonitorEventRegister``).  Here both
are the other end of a socket pair that speaks QMP, so that a client has nothing to know.

libvirt marks a domain that was reached this way as tainted (``custom-monitor``) until it is
shut off.  Needs libvirt 8.2.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from qemu_svm.errors import QmpError
from qemu_svm.optional import optional
from qemu_svm.qmp.address import Address

_LONGEST = 1 << 20
"""Characters of the longest command that is forwarded."""

_MOST_FILES = 16

_OWN = re.compile(r"/domain-\d+-(?P<name>[^/]+)/monitor\.sock$")
"""Where libvirt keeps the QMP socket of a domain (``qemuProcessPrepareMonitorChr``); the name
is cut to 20 bytes there."""

TAINTS = (
    "libvirt marks a domain whose QEMU is asked as tainted (custom-monitor) until it is shut off"
)

INSTALL = (
    "apt-get install libvirt-dev pkg-config gcc && pip install 'qemu-svm[libvirt]' "
    "(libvirt-python is built from source)"
)


@dataclass(frozen=True, slots=True)
class Domain(Address):
    """A domain of libvirt.

    :param name: or UUID, or number, as for virsh.
    :param uri: of the connection; None for libvirt's default.
    """

    name: str = ""
    uri: str | None = None

    def __str__(self) -> str:
        return f"libvirt domain '{self.name}'"

    @property
    def options(self) -> str:
        """Options of the command line that name it."""
        uri = "" if self.uri is None else f" --connect '{self.uri}'"
        return f"--domain '{self.name}'{uri}"

    @property
    def identity(self) -> str:
        """Its name and its libvirt."""
        return f"libvirt {self.uri or ''} {self.name}"

    @property
    def passes(self) -> bool:
        """It passes descriptors on to QEMU."""
        return True

    @property
    def target(self) -> socket.socket:
        """One end of a new pair; libvirt answers at the other.

        :raises QmpError: libvirt cannot be reached, or has no such domain that runs.
        :raises EnvironmentFault: libvirt-python is not installed.
        """
        ours, theirs = socket.socketpair()
        try:
            _Bridge(self, theirs).start()
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return ours


def domain_of(path: str) -> str | None:
    """Return the name of the domain whose QMP socket libvirt keeps at this path, or None."""
    found = _OWN.search(os.path.abspath(path))
    return None if found is None else found["name"]


@cache
def _libvirt() -> tuple[Any, Any]:
    # libvirt's own loop delivers events; it must exist before the first connection.
    libvirt: Any = optional("libvirt", "--domain", "libvirt-python", INSTALL)
    libvirt_qemu: Any = optional("libvirt_qemu", "--domain", "libvirt-python", INSTALL)
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    libvirt.virEventRegisterDefaultImpl()

    def serve() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    threading.Thread(target=serve, name="libvirt events", daemon=True).start()
    return libvirt, libvirt_qemu


class _Bridge:
    # One connection of a client: a thread reads its commands, libvirt's thread sends events.

    def __init__(self, domain: Domain, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._files: list[int] = []
        self._libvirt, self._monitor = _libvirt()
        try:
            self._connection = self._libvirt.open(domain.uri)
            self._domain = _lookup(self._connection, domain.name, self._libvirt.libvirtError)
            if not self._domain.isActive():
                raise QmpError(f"{domain}: it does not run", hint=f"virsh start '{domain.name}'")
            greeting = {"version": self._ask({"execute": "query-version"}).get("return", {})}
            self._events = self._monitor.qemuMonitorEventRegister(
                self._connection, self._domain, None, self._event, None
            )
        except self._libvirt.libvirtError as error:
            raise QmpError(
                f"{domain}: libvirt: {error}",
                hint=f"virsh{'' if domain.uri is None else f' -c {domain.uri!r}'} list --all "
                "shows its domains; --connect URI chooses another libvirt",
            ) from error
        self._send({"QMP": {**greeting, "capabilities": []}})

    def start(self) -> None:
        threading.Thread(target=self._serve, name="libvirt domain", daemon=True).start()

    def _serve(self) -> None:
        try:
            with suppress(OSError):
                self._forward()
        finally:
            for fd in self._files:
                os.close(fd)
            with suppress(self._libvirt.libvirtError):
                self._monitor.qemuMonitorEventDeregister(self._connection, self._events)
            with suppress(self._libvirt.libvirtError):
                self._connection.close()
            with self._lock:
                self._end.close()

    def _forward(self) -> None:
        # Commands are not separated, so each ends where its JSON does.
        decoder, pending = json.JSONDecoder(), ""
        while len(pending) <= _LONGEST:
            data, files, _flags, _from = socket.recv_fds(self._end, 1 << 16, _MOST_FILES)
            self._files += files
            if not data:
                return
            pending += data.decode("ascii")
            with suppress(json.JSONDecodeError):
                while pending := pending.lstrip():
                    command, end = decoder.raw_decode(pending)
                    pending = pending[end:]
                    self._answer(command)

    def _answer(self, command: dict[str, Any]) -> None:
        if command.get("execute") == "qmp_capabilities":
            answer: dict[str, Any] = {"return": {}}
        else:
            try:
                answer = self._ask({k: v for k, v in command.items() if k != "id"})
            except self._libvirt.libvirtError as error:
                if not self._connection.isAlive() or not self._runs():
                    raise ConnectionError from error  # as if QEMU had closed it
                answer = {"error": {"class": "GenericError", "desc": f"libvirt: {error}"}}
        if "id" in command:
            answer["id"] = command["id"]
        self._send(answer)

    def _runs(self) -> bool:
        with suppress(self._libvirt.libvirtError):
            return bool(self._domain.isActive())
        return False

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        text, files = json.dumps(command), self._files
        if files:
            self._files = []
            try:
                found = self._monitor.qemuMonitorCommandWithFiles(self._domain, text, files, 0)
            finally:
                for fd in files:
                    os.close(fd)
            found = found[0] if isinstance(found, (tuple, list)) else found
        else:
            found = self._monitor.qemuMonitorCommand(self._domain, text, 0)
        answer = json.loads(found)
        if not isinstance(answer, dict):
            raise QmpError(f"libvirt: unexpected answer: {str(found)[:80]}")
        return {name: answer[name] for name in ("return", "error") if name in answer}

    def _event(
        self, _connection: Any, _domain: Any, name: str, seconds: int, micros: int,
        details: str | None, _opaque: Any,
    ) -> None:  # fmt: skip
        stamp = {"seconds": seconds, "microseconds": micros}
        data = json.loads(details) if details else {}
        with suppress(OSError):
            self._send({"event": name, "data": data, "timestamp": stamp})

    def _send(self, message: dict[str, Any]) -> None:
        with self._lock:
            self._end.sendall(json.dumps(message).encode() + b"\r\n")


def _lookup(connection: Any, name: str, failed: type[Exception]) -> Any:
    # As virsh does: by number, UUID or name.
    ways: list[Callable[[], Any]] = [lambda: connection.lookupByName(name)]
    if name.isascii() and name.isdecimal() and int(name) < 1 << 31:
        ways.insert(0, lambda: connection.lookupByID(int(name)))
    if len(name.replace("-", "")) == 32:  # digits of a UUID
        ways.insert(0, lambda: connection.lookupByUUIDString(name))
    for way in ways[:-1]:
        with suppress(failed):
            return way()
    return ways[-1]()
