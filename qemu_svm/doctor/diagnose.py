"""All checks together: of this host, a QEMU and a VM, or of another host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from qemu_svm.doctor import facts, judge_machine, judge_qemu, probe
from qemu_svm.doctor import qemu as programs
from qemu_svm.doctor import target as vms
from qemu_svm.doctor.judge_host import judge_host
from qemu_svm.doctor.model import Check, CheckState, Diagnosis
from qemu_svm.errors import QmpError
from qemu_svm.qmp.address import Address

_QEMU = "qemu-system-x86_64"


def of_host(path: str) -> Diagnosis:
    """Check another host.

    :param path: file with what :mod:`qemu_svm.doctor.probe` printed there; ``-`` for
        standard input.
    :raises SourceError: the file cannot be read, or is not of the probe.
    """
    found = facts.load(path)
    return Diagnosis(tuple(judge_host(facts.read(found))), cast("probe.Facts", found))


async def here(
    qemu: str | None,
    address: str | Address | None,
    captures: Path,
    terminal: Sequence[Check] = (),
    *,
    put_back: bool = False,
) -> Diagnosis:
    """Check this host.

    :param qemu: a QEMU; None for the installed one.
    :param address: of a VM, see :class:`~qemu_svm.qmp.client.Client`; None for no VM.
    :param captures: directory in which captures would be written.
    :param terminal: checks of the terminal, which are shown last.
    :param put_back: put back what a killed capture has left in the VM.
    """
    found = probe.host()
    checks = list(judge_host(facts.read(found)))
    ram = 0
    try:
        checks += judge_qemu.judge_binary(await programs.ask(qemu or _QEMU))
    except QmpError as error:
        checks.append(_missing("QEMU", error, "nothing can be restored", "qemu", "restore"))
    if address is not None:
        try:
            vm = await vms.ask(address, put_back=put_back)
        except QmpError as error:
            checks.append(_missing("VM", error, "it cannot be driven", "qmp", "capture"))
        else:
            checks += judge_qemu.judge_target(vm)
            ram = vm.ram or 0
    checks += judge_machine.judge_places(captures, ram)
    checks += judge_machine.judge_lab()
    checks += judge_machine.judge_recorder()
    checks += judge_machine.judge_programs()
    return Diagnosis((*checks, *terminal), found)


def _missing(group: str, error: QmpError, means: str, *needed_for: str) -> Check:
    hint = error.hint or ""
    return Check(
        group, "answers", CheckState.MISSING, error.what, means, hint, frozenset(needed_for)
    )
