"""What a QEMU binary supports, measured with a process that has no machine.

Nothing is looked up by version: KVM is tried, and each migration capability is
enabled once, which shows what this build or this host's kernel lacks.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from qemu_svm.errors import CommandRefused, QmpError
from qemu_svm.qmp import Client, answers, features
from qemu_svm.qmp.address import Pair
from qemu_svm.qmp.answers import Version
from qemu_svm.qmp.session import finish

_START_SECONDS = 20.0
_SAID = 1 << 16
_NO_MACHINE = ("-machine", "none", "-nodefaults", "-display", "none", "-S")
_SVM_FEATURES = ("svm", "npt", "nrip-save", "vgif")


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a QEMU supports.

    :param kvm: it was built with KVM.
    :param host_cpu: with KVM, which of the CPU properties ``svm``, ``npt``, …
        a guest with ``-cpu host`` would have; empty if QEMU does not say.
    :param capabilities: migration capabilities: why each cannot be enabled by
        itself, empty if it can.
    :param compressions: methods of multifd compression.
    :param transports: kinds of address that ``migrate`` accepts besides a URI
        (QEMU 8.2); empty if it accepts URIs only.
    """

    version: Version
    package: str
    kvm: bool
    host_cpu: Mapping[str, bool]
    capabilities: Mapping[str, str]
    compressions: tuple[str, ...]
    transports: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Binary:
    """A QEMU binary on this host.

    :param no_kvm: its own message why it does not start with KVM; empty if it does.
    """

    path: str
    no_kvm: str
    abilities: Abilities


async def ask(name: str) -> Binary:
    """Start a QEMU without a machine, with KVM if possible, and query it.

    :raises QmpError: there is no such program, or it does not start or answer.
    """
    path = shutil.which(name)
    if path is None:
        raise QmpError(f"{name}: no such program", hint="apt install qemu-system-x86")
    no_kvm = ""
    for accelerator in ("kvm", "tcg"):
        try:
            async with _started([path, *_NO_MACHINE, "-accel", accelerator]) as qmp:
                return Binary(path, no_kvm, await abilities(qmp))
        except _NotStartedError as error:
            no_kvm = no_kvm or error.what
    raise QmpError(f"{path}: not a QEMU, or does not start: {no_kvm}")


async def abilities(qmp: Client) -> Abilities:
    """Query what the QEMU at the other end of a connection supports.

    It must not have a guest: capabilities are enabled and disabled again.
    """
    version = answers.mapping(await qmp.execute("query-version"), "query-version")
    # Not qom-list-types: it loads every module, and QEMU aborts on one of another build.
    kvm = answers.mapping(await qmp.execute("query-kvm"), "query-kvm")
    schema = await qmp.execute("query-qmp-schema")
    return Abilities(
        version=qmp.version,
        package=answers.string(version, "package") or "",
        kvm=kvm.get("present") is True,
        host_cpu=await _host_cpu(qmp) if kvm.get("enabled") else {},
        capabilities={name: await _switchable(qmp, name) for name in await qmp.capabilities()},
        compressions=tuple(sorted(features.compressions(schema) - {"none"})),
        transports=_transports(schema),
    )


class _NotStartedError(Exception):
    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


@contextlib.asynccontextmanager
async def _started(command: Sequence[str]) -> AsyncIterator[Client]:
    # Its files have no names and it dies with this process, so nothing is left behind.
    keeper = shutil.which("setpriv")
    ours, theirs = socket.socketpair()
    with ours, theirs, open(os.memfd_create("qemu-said"), "w+b") as log:
        try:
            # Not asyncio's: it warns if the process ends while it is killed.
            process = subprocess.Popen(
                [*([keeper, "--pdeathsig", "KILL"] if keeper else []), *command,
                 *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}"),
                 *("-mon", "chardev=qmp,mode=control")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        except OSError as error:
            raise _NotStartedError(error.strerror or str(error)) from error
        theirs.close()
        try:
            client = Client(Pair(end=ours), connect_timeout=_START_SECONDS)
            try:
                await client.open()
            except QmpError as error:
                log.seek(0)
                said = log.read(_SAID).decode(errors="replace").strip().splitlines()
                raise _NotStartedError(said[-1] if said else "no message") from error
            try:
                yield client
            finally:
                await client.close()
        finally:
            process.kill()
            await finish(asyncio.to_thread(process.wait))


async def _host_cpu(qmp: Client) -> dict[str, bool]:
    command = "query-cpu-model-expansion"
    try:
        answer = await qmp.execute(command, {"type": "full", "model": {"name": "host"}})
    except CommandRefused:
        return {}  # another architecture's QEMU
    model = answers.mapping(answers.mapping(answer, command).get("model"), command)
    properties = answers.mapping(model.get("props"), command)
    return {name: properties[name] is True for name in _SVM_FEATURES if name in properties}


async def _switchable(qmp: Client, name: str) -> str:
    try:
        await qmp.set_capabilities({name: True})
    except CommandRefused as error:
        return error.reason
    await qmp.set_capabilities({name: False})
    return ""


def _transports(schema: object) -> tuple[str, ...]:
    # The schema hides names of types; this enum is known by its values.
    for one in schema if isinstance(schema, list) else ():
        values = one.get("values") if isinstance(one, dict) else None
        if isinstance(values, list) and "socket" in values and "exec" in values:
            return tuple(sorted(str(value) for value in values))
    return ()
