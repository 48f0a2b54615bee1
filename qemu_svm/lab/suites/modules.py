"""Kernel modules of a suite in the order in which they have to be loaded.

A maintainer script would run ``depmod``, and none is run, so the dependencies are
read where depmod reads them: in the ``.modinfo`` section of each module, strings
of the form ``depends=a,b`` ended by a zero byte (kernel: scripts/mod/modpost.c).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from qemu_svm.errors import LabError
from qemu_svm.lab.host import host_faults
from qemu_svm.lab.suites.cache import Built
from qemu_svm.lab.suites.kernel_image import decompressed

WANTED = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "kvm_amd")
"""The modules that a box needs, unless they are built in; without their dependencies."""

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def in_order(built: Built, wanted: Sequence[str] = WANTED) -> list[tuple[str, bytes]]:
    """Return file name and content of modules, each after those that it depends on.

    :raises LabError: a module is missing and not built in, or cannot be read.
    """
    with host_faults(f"read the modules of {built.name}"):
        return _in_order(built, wanted)


def _in_order(built: Built, wanted: Sequence[str]) -> list[tuple[str, bytes]]:
    files = {_name(path.name): path for path in (built.modules / "kernel").rglob("*.ko*")}
    built_in = {
        _name(line.rpartition("/")[2])
        for line in (built.modules / "modules.builtin").read_text().splitlines()
    }
    found: dict[str, tuple[str, bytes]] = {}

    def visit(name: str) -> None:
        if name in found or name in built_in:
            return
        if name not in files:
            raise LabError(f"kernel {built.manifest.release} has no module {name}")
        data = files[name].read_bytes()
        content = decompressed(data) or data
        match = _DEPENDS.search(content)
        for dependency in (match.group(1).decode() if match else "").split(","):
            if dependency:
                visit(_name(dependency))
        found[name] = (files[name].name.partition(".")[0] + ".ko", content)

    for name in wanted:
        visit(name)
    return list(found.values())


def _name(file: str) -> str:
    # kvm-amd.ko.xz is the module kvm_amd
    return file.partition(".")[0].replace("-", "_")
