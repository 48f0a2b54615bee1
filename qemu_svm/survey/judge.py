"""One input judged: what the processes of a survey run, and the workers of a cluster.

It opens, decodes and judges, and returns rows; it never raises.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from qemu_svm.errors import SvmStreamError
from qemu_svm.findings.check import Report, check
from qemu_svm.findings.looks import LOOKED_AT
from qemu_svm.findings.verdict import Verdict
from qemu_svm.machine import Machine, read_machine, type_version
from qemu_svm.memory.memory import GuestMemory
from qemu_svm.model.profile import Profile
from qemu_svm.model.profiles import profiles, released
from qemu_svm.rules import Severity
from qemu_svm.source import open_source
from qemu_svm.source.details import LibvirtDetails
from qemu_svm.source.snapshots import snapshot_names
from qemu_svm.stream import read_stream
from qemu_svm.stream.ram.read import read_ram
from qemu_svm.survey.find import URL, load_fsspec
from qemu_svm.survey.row import RANK, Question, Row, State

_FOREIGN = "not a QEMU migration stream"
"""In the error about a file of another kind."""

_WORST = {
    Verdict.REFUSED: State.REFUSED,
    Verdict.BROKEN: State.BROKEN,
    Verdict.WRONG: State.WRONG,
}


Judged = list[tuple[str, list[Row]]]
"""Inputs with their rows: an image has one for each snapshot with VM state."""


def judge(paths: Sequence[str], question: Question, folder: str = "") -> Judged:
    """Return the rows of some inputs.

    :param folder: in which their names are meant, if not this process's own.
    """
    kernels = [one for name in question.kernels for one in profiles(name)] or released()
    judged = [(path, list(_rows(path, folder, question, kernels))) for path in paths]
    gc.collect()  # machines are cycles of objects, which would pile up
    return judged


def _rows(path: str, folder: str, question: Question, kernels: Sequence[Profile]) -> Iterator[Row]:
    file = path
    try:
        with _local(path, folder) as file:
            names = snapshot_names(file)
            if names is None:
                yield _row(path, file, question, kernels)
                return
            for name in names:
                yield _row(f"{path}#{name}", f"{file}#{name}", question, kernels)
    except SvmStreamError as error:
        yield _unreadable(path, file, error)


@contextmanager
def _local(path: str, folder: str) -> Iterator[str]:
    # A URL as a file, which goes when it is judged.
    if not URL.match(path):
        yield os.path.join(folder, path)
        return
    fsspec = load_fsspec()
    with tempfile.NamedTemporaryFile(prefix="svmstream-") as copy:
        try:
            with fsspec.open(path, "rb") as remote:
                shutil.copyfileobj(remote, copy, 1 << 20)
        except Exception as error:  # of any of fsspec's file systems
            raise SvmStreamError(f"cannot read '{path}': {error}") from error
        copy.flush()
        yield copy.name


def _row(path: str, file: str, question: Question, kernels: Sequence[Profile]) -> Row:
    try:
        with open_source(file, question.limits) as source:
            machine = read_machine(read_stream(source, question.limits))
            row = _judged(path, machine, question, kernels)
    except SvmStreamError as error:
        return _unreadable(path, file, error)
    return replace(row, error=row.error and row.error.replace(file, path))


def _judged(path: str, machine: Machine, question: Question, kernels: Sequence[Profile]) -> Row:
    stream, source = machine.stream, machine.stream.source
    look = source.size() <= LOOKED_AT
    report = check(
        machine,
        kernels,
        qemu=question.qemu,
        source=profiles(question.source)[0] if question.source is not None else None,
        maxphyaddr=question.maxphyaddr,
        npt=question.npt,
        cpu=question.cpu,
        memory=(lambda: GuestMemory(machine, read_ram(stream))) if look else None,
        named=bool(question.kernels),
    )
    problems = stream.problems + machine.problems
    version = type_version(machine.name)
    details = source.details
    serious, warned = (
        tuple(sorted({one.rule for one in report.findings if one.severity is severity}))
        for severity in (Severity.ERROR, Severity.WARNING)
    )
    complete = stream.complete and not problems
    return Row(
        path=path,
        state=_state(report, complete=complete, refused=bool(serious), warned=bool(warned)),
        size=source.size(),
        container=source.container,
        machine=machine.name,
        domain=details.name if isinstance(details, LibvirtDetails) else None,
        qemu=f"{version[0]}.{version[1]}" if version else None,
        vcpus=len(machine.vcpus),
        l2=tuple(vcpu.index for vcpu in machine.vcpus if vcpu.guest_mode),
        complete=complete,
        verdicts=_verdicts(report, kernels),
        refused_by=serious,
        advisories=warned,
        error=str(problems[0]) if problems else None,
    )


def _verdicts(report: Report, kernels: Sequence[Profile]) -> dict[str, str]:
    order = [Verdict.REFUSED, Verdict.BROKEN, Verdict.WRONG, Verdict.OPEN, Verdict.RIGHT]
    found: dict[str, str] = {}
    for kernel in kernels:
        of_vcpus = {one[kernel.name].verdict for one in report.verdicts.values()}
        if of_vcpus:
            found[kernel.name] = min(of_vcpus, key=order.index).value
    return found


def _state(report: Report, *, complete: bool, refused: bool, warned: bool) -> State:
    if not complete:
        return State.INCOMPLETE
    states = [State.REFUSED] if refused else []
    for of_vcpu in report.verdicts.values():
        states += [_WORST[one.verdict] for one in of_vcpu.values() if one.verdict in _WORST]
    return min(states, key=RANK.__getitem__, default=State.WARNED if warned else State.RIGHT)


def _unreadable(path: str, file: str, error: Exception) -> Row:
    # Of a copy, its own name means nothing to anybody.
    words = str(error).replace(file, path).removeprefix(f"{path}: ")
    state = State.NO_STREAM if _FOREIGN in words else State.UNREADABLE
    return Row(path, state, error=words)
