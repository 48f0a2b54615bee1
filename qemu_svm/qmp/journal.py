"""What a capture has changed in a QEMU, on disk while it lasts.

SIGKILL leaves no time to undo anything.  So each change is written to a file before it is
made, and the file goes when everything is as before; a file whose writer is dead shows the
next capture, or ``doctor --qmp``, what was left and what it was before.

The file is named by the address of the QMP socket, in ``$XDG_STATE_HOME/qemu-svm/captures``.
A QEMU that was started since is recognised by the thread of its first vCPU: then nothing of
the QEMU is left, only files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu_svm.errors import CommandRefused, Refused
from qemu_svm.qmp.address import Address, Pair
from qemu_svm.qmp.client import Client

_LARGEST = 1 << 20
_PAUSED = frozenset({"paused", "postmigrate", "finish-migrate"})


class Journal:
    """The file of one capture; a directory that cannot be written is no obstacle.

    :param address: of the QMP socket.
    :param qemu: see :func:`identity`.
    :param leftovers: incomplete files of an earlier capture, which stay in it until they are
        put back.
    """

    def __init__(self, address: Address, qemu: int | None, leftovers: Sequence[str] = ()) -> None:
        self.leftovers = tuple(leftovers)
        self._path = _file(address)
        self._facts: dict[str, Any] = {"pid": os.getpid(), "born": _born(os.getpid()), "qemu": qemu}

    def record(self, *, files: Sequence[str] | None = None, **facts: object) -> None:
        """Add facts, before what they describe is done.

        :param files: incomplete files of this capture.
        """
        self._facts |= facts
        if files is not None:
            self._facts["files"] = [*self.leftovers, *files]
        if self._path is None:
            return
        temporary = f"{self._path}.{os.getpid()}"
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with open(os.open(temporary, flags, 0o600), "w", encoding="ascii") as file:
                json.dump(self._facts, file)
            os.replace(temporary, self._path)

    def close(self) -> None:
        """Remove the file, unless what it describes could not be undone."""
        if any(self._facts.get(name) for name in ("running", "capabilities", "parameters")):
            return
        if any(map(_partial, self.leftovers)):
            self._facts = {}  # this process has nothing left, and may go on
            self.record(files=())
        else:
            _remove(self._path)


@dataclass(frozen=True, slots=True)
class Left:
    """What a killed capture has left changed.

    :param capabilities: by name: what each was before.
    :param parameters: the same of parameters.
    :param paused: the guest ran before, and does not now.
    :param files: incomplete files of the capture.
    """

    pid: int
    capabilities: Mapping[str, bool]
    parameters: Mapping[str, Any]
    paused: bool
    files: Sequence[str]

    def words(self) -> str:
        """Return what was left, for people."""
        parts = ["the guest is paused, it was running"] if self.paused else []
        for name, value in {**self.capabilities, **self.parameters}.items():
            shown = value if not isinstance(value, bool) else "on" if value else "off"
            parts.append(f"{name} was {shown}")
        parts += [f"incomplete file {path}" for path in self.files]
        return "; ".join(parts)


async def identity(client: Client) -> int | None:
    """Return a number that another QEMU at the same address has not: its first vCPU's thread."""
    with contextlib.suppress(CommandRefused):
        answer = await client.execute("query-cpus-fast")
        first = answer[0] if isinstance(answer, list) and answer else None
        thread = first.get("thread-id") if isinstance(first, dict) else None
        if isinstance(thread, int):
            return thread
    return None


async def left(client: Client) -> Left | None:
    """Return what a killed capture has left at this address; None if nothing.

    :raises QmpError: the connection was lost.
    """
    path = _file(client.address)
    facts = _read(path) if path is not None else None
    if facts is None or _alive(facts):
        return None
    capabilities: dict[str, bool] = {}
    parameters: dict[str, Any] = {}
    paused = False
    if facts.get("qemu") == await identity(client):
        present: Mapping[str, Any] = await client.capabilities()
        capabilities = _changed(facts.get("capabilities"), present)
        parameters = _changed(facts.get("parameters"), await client.parameters())
        state = (await client.status()).state
        paused = facts.get("running") is True and state in _PAUSED
    files = [path for path in _strings(facts.get("files")) if _partial(path)]
    if not (capabilities or parameters or paused or files):
        _remove(path)
        return None
    pid = facts.get("pid")
    return Left(pid if isinstance(pid, int) else 0, capabilities, parameters, paused, files)


async def refuse_if_left(client: Client) -> Sequence[str]:
    """Check that no killed capture has left a setting or the guest changed.

    :returns: incomplete files that one has left.
    :raises Refused: one has; what it was before would be lost.
    """
    found = await left(client)
    if found is None:
        return ()
    if found.capabilities or found.parameters or found.paused:
        raise Refused(
            f"an earlier capture (process {found.pid}) was killed and could not put back: "
            f"{found.words()}",
            hint=f"put it back with: svmstream doctor {client.address.options} --put-back",
        )
    return found.files


async def put_back(client: Client) -> Left | None:
    """Put back what a killed capture has left, the guest first; return what that was.

    :raises CommandRefused: QEMU does not accept it.
    """
    found = await left(client)
    if found is None:
        return None
    if found.paused:
        await client.cont()
    await client.set_parameters(found.parameters)
    await client.set_capabilities(found.capabilities)
    for path in found.files:
        with contextlib.suppress(OSError):
            os.unlink(path)
    _remove(_file(client.address))
    return found


def _remove(path: Path | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            path.unlink()


def _file(address: Address) -> Path | None:
    if isinstance(address, Pair):
        return None  # a QEMU of ours, which ends with us
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    digest = hashlib.sha256(os.fsencode(address.identity)).hexdigest()[:24]
    return Path(base) / "qemu-svm" / "captures" / f"{digest}.json"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            found = json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _alive(facts: Mapping[str, Any]) -> bool:
    pid = facts.get("pid")
    return isinstance(pid, int) and pid > 0 and _born(pid) == facts.get("born") is not None


def _born(pid: int) -> int | None:
    # When the process was started, in ticks since the machine was: field 22 of proc(5).
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _changed(before: object, now: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(before, dict):
        return {}
    return {name: value for name, value in before.items() if name in now and now[name] != value}


def _strings(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _partial(path: str) -> bool:
    # Only what a capture names so is ever removed.
    name = os.path.basename(path)
    return name.startswith(".") and name.endswith(".part") and os.path.isfile(path)
