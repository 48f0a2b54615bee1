"""What a QEMU can do, asked of a QEMU of our own that has no machine.

Capabilities are not read out of a list: each is switched on, so that what this
build or this host's kernel lacks shows itself.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu_svm.errors import CommandRefused, QmpError
from qemu_svm.qmp import sync

_START_SECONDS = 20.0
_COMPRESSIONS = ("zlib", "zstd", "qpl", "uadk", "qatzip")


@dataclass(frozen=True, slots=True)
class Binary:
    """What was found out about a QEMU binary.

    :param accelerators: such as ``kvm``, ``tcg``.
    :param capabilities: migration capabilities; why one cannot be switched on,
        or empty if it can.
    :param compressions: methods of multifd's compression.
    :param transports: kinds of address that ``migrate`` takes, as far as its
        schema tells; ``fd`` is a kind of ``socket``'s.
    """

    path: str
    version: str
    package: str
    accelerators: tuple[str, ...]
    capabilities: dict[str, str]
    compressions: tuple[str, ...]
    transports: tuple[str, ...]
    commands: frozenset[str]


def ask(name: str) -> Binary:
    """Start a QEMU and ask it.

    :raises QmpError: there is no such program, or it does not start or answer.
    """
    path = shutil.which(name)
    if path is None:
        raise QmpError(f"{name}: no such program", hint="apt install qemu-system-x86")
    with _started(path) as qmp:
        version = qmp.execute("query-version")
        accelerators = [
            one["name"].removesuffix("-accel")
            for one in qmp.execute("qom-list-types", {"implements": "accel"})
            if one["name"].endswith("-accel")
        ]
        schema = qmp.execute("query-qmp-schema")
        return Binary(
            path=path,
            version=str(qmp.version),
            package=str(version.get("package", "")),
            accelerators=tuple(sorted(accelerators)),
            capabilities=_capabilities(qmp),
            compressions=_compressions(qmp),
            transports=_transports(schema),
            commands=qmp.run(qmp.client.commands()),
        )


@contextlib.contextmanager
def _started(path: str) -> Iterator[sync.Connection]:
    with tempfile.TemporaryDirectory(prefix="svmstream-") as folder:
        socket = Path(folder) / "qmp"
        log = Path(folder) / "log"
        with log.open("wb") as errors:
            try:
                process = subprocess.Popen(
                    [path, "-machine", "none", "-nodefaults", "-display", "none", "-S",
                     "-qmp", f"unix:{socket},server=on,wait=off"],
                    stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                )  # fmt: skip
            except OSError as error:
                raise QmpError(f"{path}: {error.strerror}") from error
        try:
            end = time.monotonic() + _START_SECONDS
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > end:
                    said = log.read_text(errors="replace").strip().splitlines()
                    raise QmpError(f"{path}: is no QEMU, or does not start: {' '.join(said[-1:])}")
                time.sleep(0.01)
            with sync.connect(f"unix:{socket}") as qmp:
                yield qmp
        finally:
            process.kill()
            process.wait()


def _capabilities(qmp: sync.Connection) -> dict[str, str]:
    found = {}
    for name in qmp.run(qmp.client.capabilities()):
        try:
            qmp.run(qmp.client.set_capabilities({name: True}))
        except CommandRefused as error:
            found[name] = error.reason
        else:
            found[name] = ""
            qmp.run(qmp.client.set_capabilities({name: False}))
    return found


def _compressions(qmp: sync.Connection) -> tuple[str, ...]:
    found = []
    for name in _COMPRESSIONS:
        try:
            qmp.run(qmp.client.set_parameters({"multifd-compression": name}))
        except CommandRefused:
            continue
        found.append(name)
    return tuple(found)


def _transports(schema: list[dict[str, Any]]) -> tuple[str, ...]:
    # MigrationAddressType (8.2): an enum with socket and exec; names are masked in the schema.
    for one in schema:
        values = set(one.get("values", ()))
        if {"socket", "exec"} <= values:
            return tuple(sorted(values))
    return ()
