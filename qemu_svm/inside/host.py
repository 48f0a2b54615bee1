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
from urllib.parse import parse_qs, urlsplit

from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.kernel import NoTypes, copied_layout, read_types
from qemu_svm.inside.layout import Layout
from qemu_svm.kvm.inside import BTF, KernelMemory, type_files
from qemu_svm.kvm.processes import Process, kvm_processes, process_name, refusal, vcpu_files

Json = dict[str, Any]

_LIBVIRT = "/run/libvirt"
_DRIVER = "driver"  # its file has the number of libvirt itself (``qemu_driver.c``)
_FOLDERS = {"/system": "qemu", "/session": "qemu/run"}
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


def domain_folder(uri: str | None = None) -> str:
    """Return the directory in which a libvirt of this host keeps the numbers of its processes.

    It is beside the socket: ``qemu`` of the system's libvirt, ``qemu/run`` of a user's
    (``src/qemu/qemu_conf.c``, ``virQEMUDriverConfigNew``).

    :param uri: as for virsh; None for qemu:///system.
    :raises EnvironmentFault: that is no libvirt of this host with domains of QEMU.
    """
    parts = urlsplit(uri or "qemu:///system")
    if parts.netloc or parts.scheme not in ("qemu", "qemu+unix") or parts.path not in _FOLDERS:
        raise EnvironmentFault(
            f"'{uri}' is no libvirt of this host: its kernel's memory cannot be read from here",
            hint="qemu:///system or qemu:///session; for another host run svmstream there",
        )
    sockets = parse_qs(parts.query).get("socket")
    if sockets:
        base = os.path.dirname(sockets[0])
    elif parts.path == "/session":
        base = os.environ.get("XDG_RUNTIME_DIR") or os.path.expanduser("~/.cache")
        base += "/libvirt"
    else:
        base = _LIBVIRT
    return f"{base}/{_FOLDERS[parts.path]}"


def process_of_domain(name: str, folder: str) -> int:
    """Return the process of a running domain of libvirt.

    libvirt is not asked: it keeps the number in a file of the domain's name (``src/util/
    virpidfile.c``, ``src/qemu/qemu_process.c``).

    :param folder: :func:`domain_folder`.
    :raises EnvironmentFault: no such domain runs.
    """
    known = sorted(one.stem for one in Path(folder).glob("*.pid") if one.stem != _DRIVER)
    if name not in known:
        some = ", ".join(known[:20]) or "none"
        raise EnvironmentFault(
            f"no domain '{name}' runs: {folder} has the process of {some}",
            hint="give the domain's name; --connect qemu:///session for one of your own",
        )
    try:
        return int((Path(folder) / f"{name}.pid").read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"{folder}/{name}.pid cannot be read: {error}") from None


def require_kvm(pid: int, name: str) -> None:
    """Raise unless the process of a domain uses KVM.

    :raises EnvironmentFault: it has no vCPU, has ended, or its files may not be listed.
    """
    if not vcpu_files(pid):
        raise EnvironmentFault(
            f"domain '{name}' does not use KVM: its process {pid} ({process_name(pid)}) has no "
            "vCPU",
            hint="QEMU's TCG emulates its processor: there is nothing of it in the kernel's "
            "memory. For a domain that uses KVM: <domain type='kvm'>",
        )
