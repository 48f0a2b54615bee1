"""What the VM behind a QMP socket is, only by asking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qemu_svm.errors import CommandRefused
from qemu_svm.qmp import Client, Migration, Status


@dataclass(frozen=True, slots=True)
class Target:
    """A VM; None where QEMU does not tell.

    :param machine: machine type.
    :param svm: whether the guest's first vCPU is offered SVM.
    """

    address: str
    version: str
    machine: str | None
    status: Status
    kvm: bool | None
    vcpus: int
    svm: bool | None
    migration: Migration
    capabilities: dict[str, bool]


async def ask(address: str) -> Target:
    """Ask a running QEMU.

    :raises QmpError: it cannot be reached.
    """
    async with Client.connect(address) as qmp:
        cpus = await _try(qmp, "query-cpus-fast") or []
        first = cpus[0].get("qom-path") if cpus else None
        accelerator = await _try(qmp, "query-kvm") or {}
        machine = await _property(qmp, "/machine", "type")
        svm = await _property(qmp, first, "svm") if first else None
        return Target(
            address=str(qmp.address),
            version=str(qmp.version),
            machine=machine.removesuffix("-machine") if isinstance(machine, str) else None,
            status=await qmp.status(),
            kvm=accelerator.get("enabled"),
            vcpus=len(cpus),
            svm=svm if isinstance(svm, bool) else None,
            migration=await qmp.migration(),
            capabilities=await qmp.capabilities(),
        )


async def _try(qmp: Client, command: str) -> Any:
    try:
        return await qmp.execute(command)
    except CommandRefused:
        return None


async def _property(qmp: Client, path: str, name: str) -> Any:
    try:
        return await qmp.execute("qom-get", {"path": path, "property": name})
    except CommandRefused:
        return None
