"""The vCPUs of a running process, read out of the kernel's memory again and again.

A process that uses KVM has its vCPUs open as files, which ``/proc/PID/fd`` names
``anon_inode:kvm-vcpu:ID`` (Linux ``virt/kvm/kvm_main.c``, ``create_vcpu_fd``).  Nothing of
the process is touched or stopped: it is found in the kernel's list of tasks, as in
:mod:`qemu_svm.kvm.inside`.  A look is thrown away if the process has ended or the file is
another one afterwards: what was read may then be somebody else's.

``python3 -m qemu_svm.kvm.agent watch PID`` answers each line that it is given with a look; the
first line is the map.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
from typing import TYPE_CHECKING, Any, BinaryIO

from qemu_svm.errors import EnvironmentFault
from qemu_svm.kvm.inside import Gone, KernelMemory, Tasks, Watcher, lockdown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from typing_extensions import Self

_VCPU = re.compile(r"(?:anon_inode:)?\[?kvm-vcpu:(\d{1,9})\]?")
_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO, include/linux/proc_ns.h
_TRIES = 3  # walks through the list of tasks, which may change meanwhile
_MAP_LIMIT = 1 << 20

Json = dict[str, Any]


def refusal(root: str = "/") -> EnvironmentFault | None:
    """Return why this host's kernel memory cannot show a vCPU, or None if it may."""
    if not os.path.isdir(f"{root}sys/module/kvm_amd"):
        return EnvironmentFault(*_no_kvm_amd(root))
    if os.geteuid() != 0:
        return EnvironmentFault("kernel memory cannot be read: not root", hint="run it as root")
    if lockdown() == "confidentiality":
        return EnvironmentFault(
            "kernel memory cannot be read: kernel lockdown is in mode confidentiality",
            hint="boot without lockdown=confidentiality",
        )
    try:
        namespace = os.readlink(f"{root}proc/self/ns/pid")
    except OSError:
        namespace = _FIRST_PID_NAMESPACE
    if namespace != _FIRST_PID_NAMESPACE:
        return EnvironmentFault(
            "the kernel's list of tasks has other process ids: this is a PID namespace",
            hint="run it on the host itself, not in a container",
        )
    return None


def _no_kvm_amd(root: str) -> tuple[str]:
    what = "kvm_amd is not loaded: there is no vCPU with VMCBs"
    if os.path.isdir(f"{root}sys/module/kvm_intel"):
        return (f"{what}; kvm_intel is, whose vCPUs have a VMCS",)
    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", _text(f"{root}proc/cpuinfo"), re.MULTILINE)
    return (f"{what}; the processor's vendor is {vendor.group(1)}" if vendor else what,)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16).strip()
    except OSError:
        return ""


def vcpu_files(pid: int, root: str = "/proc") -> list[tuple[int, int]]:
    """Return the vCPUs that a process has open: file descriptors and vCPU ids.

    :raises Gone: there is no such process (any more).
    :raises EnvironmentFault: its files may not be listed.
    """
    folder = f"{root}/{pid}/fd"
    found = []
    try:
        for name in os.listdir(folder):
            try:
                link = _VCPU.fullmatch(os.readlink(f"{folder}/{name}"))
            except FileNotFoundError:
                continue  # closed meanwhile
            if link:
                found.append((int(name), int(link.group(1))))
    except (FileNotFoundError, ProcessLookupError):
        raise Gone(f"process {pid} does not exist") from None
    except PermissionError:
        raise EnvironmentFault(
            f"the files of process {pid} cannot be listed: permission denied", hint="run it as root"
        ) from None
    return sorted(found)


def kvm_processes(root: str = "/proc") -> list[Json]:
    """Return the processes that have vCPUs: ``pid``, ``name``, ``vcpus`` (how many)."""
    found = []
    for name in sorted((one for one in os.listdir(root) if one.isdigit()), key=int):
        try:
            vcpus = vcpu_files(int(name), root)
        except EnvironmentFault:
            continue
        if vcpus:
            pid = int(name)
            found.append({"pid": pid, "name": process_name(pid, root), "vcpus": len(vcpus)})
    return found


def process_name(pid: int, root: str = "/proc") -> str:
    """Return the name of a process; empty if it has ended."""
    return _text(f"{root}/{pid}/comm")


class Process:
    """A running process whose vCPUs are looked at.

    :param memory: of the kernel.
    :param layout: the map.
    :raises Gone: there is no such process, or it has no vCPU.
    :raises EnvironmentFault: its files may not be listed.
    """

    def __init__(self, memory: KernelMemory, layout: Json, pid: int) -> None:
        self._memory, self._layout, self.pid = memory, layout, pid
        self._watchers: dict[int, Watcher] = {}
        self._vms: dict[int, int] = {}
        if not vcpu_files(pid):
            raise Gone(f"process {pid} ({process_name(pid)}) has no vCPU: it does not use KVM")
        self._tasks = Tasks(memory, layout)
        self._handle = _handle(pid)
        try:
            self._task = self._found()
        except BaseException:
            self.close()
            raise

    def _found(self) -> int:
        # Other tasks may end under the reader, which then leaves the list.
        for _ in range(_TRIES - 1):
            with contextlib.suppress(Gone):
                return self._tasks.task(self.pid)
            if self._ended():
                break
        return self._tasks.task(self.pid)

    def _ended(self) -> bool:
        poll = select.poll()
        poll.register(self._handle, select.POLLIN)
        return bool(poll.poll(0))

    def look(self) -> list[Json]:
        """Return a look at every vCPU: ``id``, ``fd``, ``vm``, and what changed, or ``gone``.

        ``vm`` counts the VMs of the process from 0.

        :raises Gone: the process has ended.
        """
        seen: set[int] = set()
        found = []
        for fd, identity in vcpu_files(self.pid):
            one: Json = {"id": identity, "fd": fd}
            try:
                address = self._private(fd)
                if address in seen:
                    continue  # another descriptor of the same file
                seen.add(address)
                watcher = self._watchers.get(fd)
                if watcher is None or watcher.address != address:
                    watcher = Watcher(self._memory, self._layout, address, identity)
                    self._watchers[fd] = watcher
                owner = self._memory.number(address + self._layout["vm"])
                one["vm"] = self._vms.setdefault(owner, len(self._vms))
                look = watcher.look()
                if self._private(fd) != address:
                    raise Gone("another file")
                one.update(look)
            except Gone:
                self._watchers.pop(fd, None)
                one.update(vm=one.get("vm", 0), gone="the vCPU was closed while it was read")
            found.append(one)
        if self._ended():
            raise Gone(f"process {self.pid} has ended")
        if not found:
            raise Gone(f"process {self.pid} has closed its vCPUs")
        return found

    def _private(self, fd: int) -> int:
        return self._tasks.private_of(self._task, self.pid, fd)

    def close(self) -> None:
        """Let go of the process."""
        os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _handle(pid: int) -> int:
    # A process id may be given again; this descriptor stays that of the process.
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise Gone(f"process {pid} does not exist") from None
    except OSError as error:
        leader = re.search(r"^Tgid:\s*(\d+)", _text(f"/proc/{pid}/status"), re.MULTILINE)
        hint = f"it is a thread of process {leader.group(1)}" if leader else None
        raise EnvironmentFault(f"process {pid}: {error.strerror}", hint=hint) from None


def answer(pid: int, given: BinaryIO) -> Iterator[bytes]:
    """Return a line for each line that is given after the first, which is the map.

    :raises EnvironmentFault: kernel memory cannot be read, or there is no such process.
    """
    layout = json.loads(given.readline(_MAP_LIMIT))
    with KernelMemory() as memory, Process(memory, layout, pid) as process:
        while given.readline(_MAP_LIMIT):
            try:
                found: Json = {"vcpus": process.look()}
            except Gone as gone:
                found = {"gone": gone.what}
            yield json.dumps(found, separators=(",", ":")).encode() + b"\n"
            if "gone" in found:
                return
