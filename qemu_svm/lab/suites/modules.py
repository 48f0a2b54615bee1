"""Kernel modules of a suite: which ones a box needs, in the order they load.

``depmod`` is a maintainer script's work and did not run, so the dependencies are
read where depmod reads them: in the ``.modinfo`` section of each module, strings
of the form ``depends=a,b`` ended by a zero byte (kernel: scripts/mod/modpost.c).
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from pathlib import Path

from qemu_svm.errors import LabError
from qemu_svm.lab.suites.cache import Built

#: What a box needs beyond what is built in; dependencies come by themselves.
WANTED = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "kvm_amd")

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def in_order(built: Built, wanted: Sequence[str] = WANTED) -> list[tuple[str, bytes]]:
    """Return name and content of the modules to load, each after what it depends on.

    :raises LabError: a module is neither there nor built in.
    """
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
        content = _content(files[name])
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


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data
