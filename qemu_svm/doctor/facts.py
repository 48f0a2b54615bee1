"""The facts of :mod:`qemu_svm.doctor.probe` as typed values.

They may come from a file that was made on another host, so they are read as untrusted
input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from qemu_svm.errors import SourceError
from qemu_svm.limits import MIB
from qemu_svm.model.kernels.release import Release, parse_if_any

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Cpu:
    """The processor; ``svm_features`` have the names of /proc/cpuinfo."""

    vendor: str
    model: str
    count: int
    svm: bool
    hypervisor: bool
    svm_features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kvm:
    """KVM's device.

    :param mode: its permissions, in octal.
    :param error: name of the errno with which opening failed; empty if it opened.
    :param api: KVM_GET_API_VERSION.
    :param capabilities: KVM_CHECK_EXTENSION by name; empty if it did not open.
    """

    device: str
    exists: bool
    mode: str
    owner: str
    group: str
    error: str
    api: int
    capabilities: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class KernelMemory:
    """What reading a vCPU out of kernel memory depends on.

    :param kcore: name of the errno with which opening /proc/kcore failed; empty if it opened.
    :param lockdown: the file of that name; the state is in brackets.
    :param types: names of the files with the kernel's types (BTF).
    """

    kcore: str
    lockdown: str
    kptr_restrict: str
    pid_namespace: str
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Host:
    """All facts about a host.

    :param name: ``uname -r``.
    :param kernel: its version; None if the name does not contain it.
    :param modules: parameters of KVM's modules that are loaded.
    :param user: name of the user who ran the probe.
    :param inside: None if the probe was too old to say.
    """

    name: str
    kernel: Release | None
    cpu: Cpu
    modules: Mapping[str, Mapping[str, str]]
    kvm: Kvm
    user: str
    inside: KernelMemory | None = None


def read(facts: Mapping[str, Any]) -> Host:
    """Read what :func:`qemu_svm.doctor.probe.host` returned.

    :raises SourceError: they are incomplete or of other types.
    """
    kernel, cpu, kvm = (_get(facts, name, dict) for name in ("kernel", "cpu", "kvm"))
    name = _get(kernel, "release", str)
    if "machine" in kernel:
        _get(kernel, "machine", str)
    modules = _get(facts, "modules", dict)
    return Host(
        name=name,
        kernel=parse_if_any(name, _get(kernel, "version", str), _get(kernel, "signature", str)),
        cpu=Cpu(
            vendor=_get(cpu, "vendor", str),
            model=_get(cpu, "model", str),
            count=_get(cpu, "count", int),
            svm=_get(cpu, "svm", bool),
            hypervisor=_get(cpu, "hypervisor", bool),
            svm_features=_strings(cpu, "svm_features"),
        ),
        modules={one: _all(_get(modules, one, dict), str) for one in modules},
        kvm=Kvm(
            device=_get(kvm, "device", str),
            exists=_get(kvm, "exists", bool),
            mode=_get(kvm, "mode", str),
            owner=_get(kvm, "owner", str),
            group=_get(kvm, "group", str),
            error=_get(kvm, "error", str),
            api=_get(kvm, "api", int),
            capabilities=_all(_get(kvm, "capabilities", dict), int),
        ),
        user=_get(facts, "user", str),
        inside=_inside(_get(facts, "inside", dict)) if "inside" in facts else None,
    )


def _inside(found: Mapping[str, Any]) -> KernelMemory:
    return KernelMemory(
        kcore=_get(found, "kcore", str),
        lockdown=_get(found, "lockdown", str),
        kptr_restrict=_get(found, "kptr_restrict", str),
        pid_namespace=_get(found, "pid_namespace", str),
        types=_strings(found, "types"),
    )


def load(path: str) -> dict[str, Any]:
    """Read a file (``-``: standard input) that the probe wrote; :func:`read` interprets it.

    :raises SourceError: it cannot be read, or is not a JSON object.
    """
    try:
        with open(0 if path == "-" else path, "rb", closefd=path != "-") as file:
            text = file.read(MIB + 1)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    try:
        found = json.loads(text) if len(text) <= MIB else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise _no_facts(path)
    return found


def _get(facts: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    value = facts.get(name)
    if type(value) is not kind:
        raise _no_facts(f"'{name}' is missing or of another type")
    return value


def _all(facts: Mapping[str, Any], kind: type[_T]) -> dict[str, _T]:
    return {name: _get(facts, name, kind) for name in facts}


def _strings(facts: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = _get(facts, name, list)
    if not all(isinstance(one, str) for one in found):
        raise _no_facts(f"'{name}' is missing or of another type")
    return tuple(found)


def _no_facts(what: str) -> SourceError:
    return SourceError(
        f"not the facts about a host: {what}",
        hint="collect them on that host with: python3 probe.py > host.json",
    )
