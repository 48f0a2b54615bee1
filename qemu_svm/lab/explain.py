"""Why a restore did not work: the rules that a stream meets on the destination."""

from __future__ import annotations

from collections.abc import Mapping

from qemu_svm.machine import Machine
from qemu_svm.restore import judge
from qemu_svm.restore.judge import Finding
from qemu_svm.restore.releases import profile, release


def explanations(
    machine: Machine, versions: Mapping[str, str], *, npt: bool = True
) -> tuple[Finding, ...]:
    """Judge a stream for the kernel and the QEMU of a box.

    :param versions: package versions, as of :attr:`qemu_svm.lab.session.Session.versions`.
    :param npt: whether the box's KVM uses nested paging.
    """
    version = release(versions["kernel"])
    kernel = None if version is None else profile(version)
    found = () if kernel is None else judge.check(machine, [kernel], npt=npt).findings
    return (*found, *judge.qemu_findings(machine, _upstream(versions["qemu"])))


def _upstream(version: str) -> str:
    # 1:7.2+dfsg-7 is 7.2.
    text = version.partition(":")[2] or version
    numbers = text.partition("+")[0].split(".")
    return ".".join(numbers[:2])
