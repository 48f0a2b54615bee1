"""Collects facts about a host, without judging them.

This file needs only the standard library of Python 3.9, so that it can be copied to a
host without svmstream::

    python3 probe.py > host.json

All facts come from the kernel: ``/proc/cpuinfo``, ``/sys/module``, ``/dev/kvm``.
What cannot be read is an empty string or 0.

Source: Linux ``include/uapi/linux/kvm.h`` (KVM_GET_API_VERSION,
KVM_CHECK_EXTENSION), ``arch/x86/include/asm/cpufeatures.h`` word 15 (CPUID
0x8000000A EDX).
"""

from __future__ import annotations

import errno
import fcntl
import grp
import json
import os
import pwd
import stat
import sys
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from typing import NotRequired

GET_API_VERSION = 0xAE00
CHECK_EXTENSION = 0xAE03

CAPABILITIES = {
    "nested_state": 157,
    "sregs2": 200,
    "xsave2": 208,
    "exception_payload": 164,
    "x86_triple_fault_event": 218,
    "x86_smm": 117,
    "disable_quirks2": 213,
    "max_vcpus": 66,
}
"""Numbers of the KVM_CAPs that matter for saving and restoring."""

SVM_FLAGS = (
    *("npt", "lbrv", "svm_lock", "nrip_save", "tsc_scale", "vmcb_clean", "flushbyasid"),
    *("decodeassists", "pausefilter", "pfthreshold", "avic", "v_vmsave_vmload", "vgif"),
    *("x2avic", "v_spec_ctrl", "vnmi"),
)
"""Features of SVM by their names in /proc/cpuinfo."""

MODULES = ("kvm", "kvm_amd", "kvm_intel")


class Kernel(TypedDict):
    """``uname``, and what Ubuntu says of its kernel."""

    release: str
    version: str
    machine: NotRequired[str]
    signature: str


class Cpu(TypedDict):
    """The processor."""

    vendor: str
    model: str
    count: int
    svm: bool
    hypervisor: bool
    svm_features: list[str]


class Kvm(TypedDict):
    """KVM's device."""

    device: str
    exists: bool
    mode: str
    owner: str
    group: str
    error: str
    api: int
    capabilities: dict[str, int]


class KernelMemory(TypedDict):
    """What reading a vCPU out of kernel memory depends on."""

    kcore: str
    lockdown: str
    kptr_restrict: str
    pid_namespace: str
    types: list[str]


class Facts(TypedDict):
    """All of it; an older probe does not say ``inside``."""

    kernel: Kernel
    cpu: Cpu
    modules: dict[str, dict[str, str]]
    kvm: Kvm
    inside: NotRequired[KernelMemory]
    user: str


def host(device: str = "/dev/kvm") -> Facts:
    """Collect all facts; what is missing never raises an exception."""
    names = os.uname()
    return {
        "kernel": {
            "release": names.release,
            "version": names.version,
            "machine": names.machine,
            "signature": _read("/proc/version_signature"),
        },
        "cpu": cpu(_read("/proc/cpuinfo")),
        "modules": modules("/sys/module"),
        "kvm": kvm(device),
        "inside": inside("/"),
        "user": _user(os.geteuid()),
    }


def cpu(text: str) -> Cpu:
    """Parse ``/proc/cpuinfo``; the first processor represents all."""
    first: dict[str, str] = {}
    count = 0
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        count += key == "processor"
        if key and key not in first:
            first[key] = value
    flags = first.get("flags", "").split()
    return {
        "vendor": first.get("vendor_id", ""),
        "model": first.get("model name", ""),
        "count": count,
        "svm": "svm" in flags,
        "hypervisor": "hypervisor" in flags,
        "svm_features": [flag for flag in SVM_FLAGS if flag in flags],
    }


def modules(folder: str) -> dict[str, dict[str, str]]:
    """Read the parameters of the KVM modules that are loaded."""
    found = {}
    for name in MODULES:
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            parameters = os.path.join(path, "parameters")
            names = sorted(os.listdir(parameters)) if os.path.isdir(parameters) else []
            found[name] = {one: _read(os.path.join(parameters, one)) for one in names}
    return found


def kvm(device: str) -> Kvm:
    """Query KVM through its device file."""
    found: Kvm = {
        "device": device,
        "exists": False,
        "mode": "",
        "owner": "",
        "group": "",
        "error": "",
        "api": 0,
        "capabilities": {},
    }
    try:
        status = os.stat(device)
        found["exists"] = True
        found["mode"] = format(stat.S_IMODE(status.st_mode), "04o")
        found["owner"] = _user(status.st_uid)
        found["group"] = _group(status.st_gid)
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        found["error"] = errno.errorcode.get(error.errno or 0, str(error))
        return found
    try:
        found["api"] = fcntl.ioctl(fd, GET_API_VERSION, 0)
        for name, number in CAPABILITIES.items():
            found["capabilities"][name] = fcntl.ioctl(fd, CHECK_EXTENSION, number)
    except OSError as error:
        found["error"] = errno.errorcode.get(error.errno or 0, str(error))
    finally:
        os.close(fd)
    return found


def inside(root: str) -> KernelMemory:
    """What reading a vCPU out of kernel memory depends on.

    ``kcore`` is the name of the errno with which opening it fails; empty if it opens.
    """
    error = ""
    try:
        os.close(os.open(f"{root}proc/kcore", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as failed:
        error = errno.errorcode.get(failed.errno or 0, str(failed))
    try:
        namespace = os.readlink(f"{root}proc/self/ns/pid")
    except OSError:
        namespace = ""
    types = f"{root}sys/kernel/btf"
    return {
        "kcore": error,
        "lockdown": _read(f"{root}sys/kernel/security/lockdown"),
        "kptr_restrict": _read(f"{root}proc/sys/kernel/kptr_restrict"),
        "pid_namespace": namespace,
        "types": [name for name in ("vmlinux", *MODULES) if os.path.exists(f"{types}/{name}")],
    }


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 24).strip()
    except OSError:
        return ""


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def main(arguments: list[str]) -> None:
    """Print the facts as JSON; ``arguments`` may name another KVM device."""
    json.dump(host(*arguments[:1]), sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(sys.argv[1:])
