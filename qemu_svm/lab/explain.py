"""Why a restore failed: the rules that apply to a stream on the destination."""

from __future__ import annotations

from collections.abc import Mapping

from qemu_svm.findings.advisories import COMMON
from qemu_svm.findings.check import check
from qemu_svm.findings.qemus import qemu_findings
from qemu_svm.machine import Machine
from qemu_svm.model.kernels.derive import profile_of
from qemu_svm.model.kernels.release import parse_if_any
from qemu_svm.rules import Finding, Severity

_OF_SOURCES = frozenset({"A-03"})


def explanations(
    machine: Machine,
    versions: Mapping[str, str],
    *,
    npt: bool = True,
    source: Mapping[str, str] | None = None,
) -> tuple[Finding, ...]:
    """Check a stream for the kernel and the QEMU of a box.

    :param versions: package versions, as in :attr:`qemu_svm.lab.box.session.BoxSession.versions`.
    :param npt: whether the box's KVM uses nested paging.
    :param source: the versions of the host that saved it, if known.
    """
    found = {one.rule: one for one in _by_kernel(machine, versions, npt=npt)}
    for one in _by_kernel(machine, source or {}, npt=npt):
        if one.rule in _OF_SOURCES:
            found.setdefault(one.rule, one)
    return (*found.values(), *qemu_findings(machine, _upstream(versions["qemu"])))


def _by_kernel(machine: Machine, versions: Mapping[str, str], *, npt: bool) -> tuple[Finding, ...]:
    version = parse_if_any(versions.get("kernel", ""))
    kernel = None if version is None else profile_of(version)
    if kernel is None:
        return ()
    # What ordinary streams meet explains no failure, unless it is a warning.
    every = check(machine, [kernel], npt=npt).findings
    return tuple(
        one for one in every if one.severity is not Severity.INFO or one.rule not in COMMON
    )


def _upstream(version: str) -> str:
    # 7.2 of 1:7.2+dfsg-7.
    text = version.partition(":")[2] or version
    numbers = text.partition("+")[0].split(".")
    return ".".join(numbers[:2])
