"""Where a running process's vCPUs are looked at: this host; a box is :mod:`qemu_svm.lab.inside`.

The reader is the same in both places (:mod:`qemu_svm.kvm.processes`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.kernel import NoTypes, copied_layout, read_types
from qemu_svm.inside.layout import Layout
from qemu_svm.kvm.inside import BTF, KernelMemory, type_files
from qemu_svm.kvm.processes import Process, kvm_processes, refusal

Json = dict[str, Any]

_LIBVIRT = "/run/libvirt/qemu"
_MAKE_TYPES = (
    "make them from debug information of the same build: apt install linux-image-{0}-dbg pahole; "
    "pahole --btf_encode_detached=kvm-amd.btf "
    "/usr/lib/debug/lib/modules/{0}/kernel/arch/x86/kvm/kvm-amd.ko; --types kvm-amd.btf"
)


class Feed(Protocol):
    """Looks at one process."""

    def look(self) -> list[Json]:
        """Return what changed, by vCPU: :meth:`qemu_svm.kvm.processes.Process.look`.

        :raises EnvironmentFault: the process has ended.
        """
        ...


class Host(Protocol):
    """A kernel whose memory is read."""

    def kernel(self) -> str:
        """Return its release."""
        ...

    def layout(self) -> Layout:
        """Return where a vCPU's parts are.

        :raises EnvironmentFault: the kernel does not say so.
        """
        ...

    def processes(self) -> list[Json]:
        """Return the processes that have vCPUs.

        :raises EnvironmentFault: this host cannot show them.
        """
        ...

    def feed(self, pid: int, layout: Layout) -> AbstractContextManager[Feed]:
        """Look at a process.

        :raises EnvironmentFault: it does not exist, has no vCPU, or cannot be read.
        """
        ...


class ThisHost:
    """The host that svmstream runs on; see :class:`Host`.

    :param types: file with the BTF of kvm-amd, for a kernel that does not have it.
    """

    def __init__(self, types: Path | None = None) -> None:
        self._types = types

    def kernel(self) -> str:
        """See :meth:`Host.kernel`."""
        return os.uname().release

    def layout(self) -> Layout:
        """See :meth:`Host.layout`."""
        if "vmlinux" not in type_files():
            raise EnvironmentFault(
                "this kernel has no types: /sys/kernel/btf/vmlinux does not exist",
                hint="a kernel with CONFIG_DEBUG_INFO_BTF is needed",
            )
        module = None if self._types is None else read_types(self._types)
        answer = json.dumps({"files": sorted(type_files())}).encode()
        try:
            return copied_layout(Path(BTF), answer, module)
        except NoTypes as fault:
            raise NoTypes(fault.what, hint=_MAKE_TYPES.format(self.kernel())) from None

    def processes(self) -> list[Json]:
        """See :meth:`Host.processes`."""
        if (fault := refusal()) is not None:
            raise fault
        return kvm_processes()

    @contextmanager
    def feed(self, pid: int, layout: Layout) -> Iterator[Feed]:
        """See :meth:`Host.feed`."""
        with KernelMemory() as memory, Process(memory, layout.map, pid) as process:
            yield process


def process_of_domain(name: str, folder: str = _LIBVIRT) -> int:
    """Return the process of a running domain of libvirt's ``qemu:///system``.

    libvirt is not asked: it keeps the number in a file of the domain's name (``src/util/
    virpidfile.c``, ``src/qemu/qemu_process.c``).

    :raises EnvironmentFault: no such domain runs.
    """
    known = sorted(one.stem for one in Path(folder).glob("*.pid"))
    if name not in known:
        some = ", ".join(known[:20]) or "none"
        raise EnvironmentFault(
            f"no domain '{name}' runs under qemu:///system: {folder} has the process of {some}",
            hint="give the domain's name; for qemu:///session give --pid",
        )
    try:
        return int((Path(folder) / f"{name}.pid").read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"{folder}/{name}.pid cannot be read: {error}") from None
