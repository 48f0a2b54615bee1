"""Judges a QEMU binary and a running VM: what can be captured and restored."""

from __future__ import annotations

from collections.abc import Iterator

from qemu_svm.doctor.model import Check, CheckState
from qemu_svm.doctor.qemu import Abilities, Binary
from qemu_svm.doctor.target import Target
from qemu_svm.qmp.answers import Version
from qemu_svm.qmp.features import SINCE

_QEMU = "QEMU"
_SOCKET = "VM"

_CARRIES_NESTED = Version(5, 1)

_SINCE = {**SINCE, "postcopy-ram": "2.6"}
"""Useful migration capabilities and the QEMU version that introduced each."""


def judge_binary(found: Binary) -> Iterator[Check]:
    """Judge a QEMU binary on this host."""
    yield from _version(found.abilities, found.path)
    yield from _accelerator(found)
    yield from _migration(found.abilities)


def _version(found: Abilities, path: str) -> Iterator[Check]:
    text = f"{found.version}, {path}" + (f", {found.package}" if found.package else "")
    if found.version < _CARRIES_NESTED:
        yield Check(
            _QEMU, "version", CheckState.WARNING, text,
            f"nested SVM state is migrated since QEMU {_CARRIES_NESTED} (Q-01)", "use a newer QEMU",
        )  # fmt: skip
    else:
        yield Check(_QEMU, "version", CheckState.OK, text)


def _accelerator(found: Binary) -> Iterator[Check]:
    emulates = "guests are emulated: slow, and without KVM's nested state"
    if not found.abilities.kvm:
        yield Check(
            _QEMU, "KVM", CheckState.WARNING, "not built in", emulates, "use a build with KVM"
        )
        return
    if found.no_kvm:
        yield Check(
            _QEMU, "KVM", CheckState.WARNING, f"does not start with KVM: {found.no_kvm}", emulates,
            "see KVM above",
        )  # fmt: skip
        return
    yield Check(_QEMU, "KVM", CheckState.OK, "starts with KVM")
    cpu = found.abilities.host_cpu
    if cpu.get("svm"):
        offered = " ".join(name for name, on in cpu.items() if on)
        yield Check(_QEMU, "-cpu host", CheckState.OK, f"offers {offered}")
    elif cpu:
        yield Check(
            _QEMU,
            "-cpu host",
            CheckState.NOTE,
            "does not offer svm",
            "guests on this host cannot use SVM",
        )


def _migration(found: Abilities) -> Iterator[Check]:
    can = [name for name in _SINCE if found.capabilities.get(name) == ""]
    can += [f"{name} compression" for name in found.compressions]
    can += [f"{name} address" for name in found.transports if name == "file"]
    yield Check(_QEMU, "migration", CheckState.OK, ", ".join(can))
    for name, since in _SINCE.items():
        why = found.capabilities.get(name)
        if why is None:
            yield Check(_QEMU, name, CheckState.NOTE, "missing", do=f"available since QEMU {since}")
        elif why:
            yield Check(_QEMU, name, CheckState.WARNING, "cannot be enabled", why)


def judge_target(found: Target) -> Iterator[Check]:
    """Judge a running VM."""
    yield Check(
        _SOCKET,
        "QEMU",
        CheckState.OK,
        f"{found.version}, {found.machine or 'machine type not reported'}",
    )
    accelerator = {True: "KVM", False: "no KVM", None: "accelerator not reported"}[found.kvm]
    yield Check(
        _SOCKET, "guest", CheckState.OK,
        f"{found.status.state}, {found.vcpus or '?'} vCPUs, {accelerator}",
    )  # fmt: skip
    if found.svm:
        yield Check(_SOCKET, "svm", CheckState.OK, "offered to the guest")
    elif found.svm is False:
        yield Check(
            _SOCKET, "svm", CheckState.NOTE, "not offered to the guest",
            "its streams have no nested state", "start it with -cpu host,+svm",
        )  # fmt: skip
    yield from _movable(found)
    if found.left is not None:
        yield Check(
            _SOCKET, "left over", CheckState.OK, f"put back: {found.left.words()}",
        ) if found.put_back else Check(
            _SOCKET, "left over", CheckState.WARNING, found.left.words(),
            f"left by a capture that was killed (process {found.left.pid})", "add --put-back",
        )  # fmt: skip
    on = [name for name, state in found.capabilities.items() if state]
    yield Check(_SOCKET, "capabilities", CheckState.NOTE, f"on: {', '.join(on) or 'none'}")


def _movable(found: Target) -> Iterator[Check]:
    capture = frozenset({"capture"})
    state = found.migration.status
    for reason in found.migration.blockers:
        yield Check(
            _SOCKET, "migration", CheckState.MISSING, f"blocked: {reason}", "it cannot be captured",
            "remove what blocks it", capture,
        )  # fmt: skip
    if found.status.state == "inmigrate":
        yield Check(
            _SOCKET,
            "migration",
            CheckState.NOTE,
            "waiting for a stream",
            "it cannot be captured yet",
            "send it one with svmstream restore",
            capture,
        )
    elif found.migration.active:
        yield Check(
            _SOCKET, "migration", CheckState.WARNING, f"in progress ({state})",
            "no other can start", "svmstream watch shows it", capture,
        )  # fmt: skip
    elif not found.migration.blockers:
        last = f", the last one {state}" if state else ""
        yield Check(_SOCKET, "migration", CheckState.OK, f"none in progress{last}")
