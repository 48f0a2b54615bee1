"""Queries the VM behind a QMP socket; nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qemu_svm.errors import CommandRefused
from qemu_svm.qmp import Client, Migration, Status, answers, journal
from qemu_svm.qmp.address import Address
from qemu_svm.qmp.answers import Version
from qemu_svm.qmp.journal import Left


@dataclass(frozen=True, slots=True)
class Target:
    """A VM; None for what QEMU does not report.

    :param machine: machine type, such as ``pc-i440fx-7.2``.
    :param ram: bytes, hotplugged memory included.
    :param kvm: whether it runs with KVM.
    :param svm: whether the guest's first vCPU is offered SVM.
    :param capabilities: migration capabilities and whether they are on.
    :param left: what a killed capture has left, before anything was put back.
    """

    version: Version
    machine: str | None
    status: Status
    ram: int | None
    kvm: bool | None
    vcpus: int | None
    svm: bool | None
    migration: Migration
    capabilities: dict[str, bool]
    left: Left | None = None
    put_back: bool = False


async def ask(address: str | Address, *, put_back: bool = False) -> Target:
    """Query a running QEMU.

    :param put_back: put back what a killed capture has left.

    :raises QmpError: it cannot be reached.
    """
    async with Client.connect(address) as qmp:
        left = await (journal.put_back(qmp) if put_back else journal.left(qmp))
        kvm = await _object(qmp, "query-kvm")
        memory = await _object(qmp, "query-memory-size-summary")
        cpus = await _ask(qmp, "query-cpus-fast")
        first = cpus[0] if isinstance(cpus, list) and cpus and isinstance(cpus[0], dict) else {}
        machine = await _property(qmp, "/machine", "type")
        svm = await _property(qmp, first.get("qom-path"), "svm")
        base = answers.number(memory, "base-memory")
        return Target(
            version=qmp.version,
            machine=machine.removesuffix("-machine") if isinstance(machine, str) else None,
            status=await qmp.status(),
            ram=None if base is None else base + (answers.number(memory, "plugged-memory") or 0),
            kvm=kvm["enabled"] if isinstance(kvm.get("enabled"), bool) else None,
            vcpus=len(cpus) if isinstance(cpus, list) else None,
            svm=svm if isinstance(svm, bool) else None,
            migration=await qmp.migration(),
            capabilities=await qmp.capabilities(),
            left=left,
            put_back=put_back,
        )


async def _ask(qmp: Client, command: str, arguments: dict[str, object] | None = None) -> Any:
    # An older QEMU, or another architecture's, may not have the command or the property.
    try:
        return await qmp.execute(command, arguments)
    except CommandRefused:
        return None


async def _object(qmp: Client, command: str) -> dict[str, Any]:
    answer = await _ask(qmp, command)
    return answer if isinstance(answer, dict) else {}


async def _property(qmp: Client, path: object, name: str) -> Any:
    if not isinstance(path, str):
        return None
    return await _ask(qmp, "qom-get", {"path": path, "property": name})
