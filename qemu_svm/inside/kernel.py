"""The layout of the kernel that an agent runs on, from the types that it copied."""

from __future__ import annotations

import json
from pathlib import Path

from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.btf import Btf
from qemu_svm.inside.layout import Layout, read_layout

_LIMIT = 64 << 20  # bytes; the types of a kernel have 5 MB


class NoTypes(EnvironmentFault):
    """The kernel does not have the types of kvm-amd."""


def copied_layout(folder: Path, answer: bytes, module: bytes | None = None) -> Layout:
    """Return the layout of a kernel.

    :param folder: where the agent copied the types to.
    :param answer: what it printed (``types``).
    :param module: types of kvm-amd, complete in themselves, in place of the kernel's own.
    :raises NoTypes: kvm-amd's are missing.
    :raises EnvironmentFault: the types are damaged.
    """
    try:
        names = [str(name) for name in json.loads(answer)["files"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise EnvironmentFault("the agent's answer about types cannot be read") from None
    kernel = Btf(read_types(folder / "vmlinux"), name="/sys/kernel/btf/vmlinux")
    if module is not None:
        return read_layout(Btf(module, name="the module's types"), kernel)
    if "kvm_amd" in names:
        path = "/sys/kernel/btf/kvm_amd"
        return read_layout(Btf(read_types(folder / "kvm_amd"), kernel, path))
    if kernel.structure("vcpu_svm") is not None:
        return read_layout(kernel)  # built in
    raise NoTypes(
        "the types of kvm_amd are missing: /sys/kernel/btf/kvm_amd does not exist",
        hint="kernels have types of modules since 5.11, with CONFIG_DEBUG_INFO_BTF_MODULES",
    )


def read_types(path: Path) -> bytes:
    """Return the content of a file with types.

    :raises EnvironmentFault: it cannot be read, or is too large for types.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise EnvironmentFault(f"{path}: {error.strerror}") from None
    if len(data) > _LIMIT:
        raise EnvironmentFault(f"{path} has more than {_LIMIT >> 20} MiB")
    return data
