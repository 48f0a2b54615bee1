"""What a QEMU binary, and a running one, mean for capturing and restoring."""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.doctor.model import Check, State
from qemu_svm.doctor.qemu import Binary
from qemu_svm.doctor.target import Target

_QEMU = "QEMU"
_SOCKET = "QMP socket"

_SINCE = {
    "mapped-ram": "9.0",
    "multifd": "4.0",
    "background-snapshot": "6.0",
    "postcopy-ram": "2.6",
    "xbzrle": "1.3",
    "zero-copy-send": "7.1",
}
"""Capabilities that svmstream can make use of, and QEMU's version that brought them."""


def judge_binary(found: Binary) -> Iterator[Check]:
    """Judge a QEMU binary."""
    package = f" ({found.package})" if found.package else ""
    old = tuple(map(int, found.version.split(".")[:2])) < (5, 1)
    yield Check(
        _QEMU, "version", State.WARNING if old else State.OK,
        f"{found.version}{package}, {found.path}",
        "nested SVM state travels from QEMU 5.1 on (Q-01)" if old else "",
        "use a newer QEMU" if old else "",
    )  # fmt: skip
    kvm = "kvm" in found.accelerators
    yield Check(
        _QEMU, "accelerators", State.OK if kvm else State.WARNING, " ".join(found.accelerators),
        "" if kvm else "this build has no KVM: no real nested SVM",
        "" if kvm else "use a build with KVM",
    )  # fmt: skip
    for name, since in _SINCE.items():
        why = found.capabilities.get(name)
        if why is None:
            yield Check(_QEMU, name, State.NOTE, "not there", "", f"QEMU {since} has it")
        elif why:
            yield Check(_QEMU, name, State.NOTE, f"not by itself: {why}")
        else:
            yield Check(_QEMU, name, State.OK, "can be switched on")
    yield Check(
        _QEMU, "compression", State.NOTE, " ".join(found.compressions) or "none", "of multifd"
    )
    yield Check(
        _QEMU, "transports", State.NOTE,
        " ".join(found.transports) or "fd exec tcp unix (before 8.2: as URI only)",
    )  # fmt: skip


def judge_target(found: Target) -> Iterator[Check]:
    """Judge a running VM."""
    yield Check(
        _SOCKET, "answers", State.OK,
        f"QEMU {found.version}, {found.machine or 'machine type unknown'}",
    )  # fmt: skip
    accelerator = {True: "KVM", False: "no KVM", None: "accelerator unknown"}[found.kvm]
    yield Check(
        _SOCKET, "guest", State.OK,
        f"{found.status.state}, {found.vcpus} vCPUs, {accelerator}",
    )  # fmt: skip
    if found.svm is not None:
        yield Check(
            _SOCKET, "svm", State.OK if found.svm else State.NOTE,
            "offered to the guest" if found.svm else "not offered to the guest",
            "" if found.svm else "its streams carry no nested state",
            "" if found.svm else "-cpu host,+svm",
        )  # fmt: skip
    if found.migration.blockers:
        for reason in found.migration.blockers:
            yield Check(
                _SOCKET, "migration", State.MISSING, f"blocked: {reason}",
                "no capture is possible", "remove what blocks it", frozenset({"capture"}),
            )  # fmt: skip
    elif found.migration.active:
        yield Check(
            _SOCKET, "migration", State.WARNING, f"one is under way ({found.migration.status})",
            "no other can begin", "svmstream watch shows it",
        )  # fmt: skip
    else:
        last = f", the last one {found.migration.status}" if found.migration.status else ""
        yield Check(_SOCKET, "migration", State.OK, f"none under way{last}")
    on = [name for name, state in found.capabilities.items() if state]
    yield Check(_SOCKET, "capabilities", State.NOTE, " ".join(on) or "none switched on")
