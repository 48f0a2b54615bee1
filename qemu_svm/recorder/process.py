"""The process that is recorded, as ``/proc`` shows it."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from qemu_svm.errors import EnvironmentFault

FIRST_NAMESPACE = 0xEFFF_FFFC
"""Inode of the kernel's first PID namespace (``include/linux/proc_ns.h``)."""

_VCPU = re.compile(r"anon_inode:kvm-vcpu:(\d+)")
_KVM_FILE = re.compile(r"/dev/kvm|anon_inode:\[?kvm-.*")
_START_TIME = 19  # field of /proc/PID/stat, counted after the name

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class ProcessGone(EnvironmentFault):
    """There is no such process, or another one has its number now."""

    rule = "process"


@dataclass(frozen=True)
class Process:
    """A process.

    :param start: its start in clock ticks after the boot, which tells it from a later one
        with the same number.
    :param user: its real uid.
    """

    pid: int
    start: int
    user: int

    def is_alive(self) -> bool:
        """Whether it runs still, and no other has its number."""
        try:
            return _identity(self.pid) == (self.start, self.user)
        except (OSError, ValueError):
            return False

    def program(self) -> str:
        """Return the path of its program; its name if the path cannot be read."""
        try:
            return os.readlink(f"/proc/{self.pid}/exe")
        except OSError:
            try:
                with open(f"/proc/{self.pid}/comm") as file:
                    return file.read().strip()
            except OSError:
                return ""

    def threads(self) -> list[int]:
        """Return its threads."""
        try:
            return sorted(int(name) for name in os.listdir(f"/proc/{self.pid}/task"))
        except OSError:
            return []

    def link(self, descriptor: int) -> str | None:
        """Return what a descriptor is of; None if it cannot be read."""
        try:
            return os.readlink(f"/proc/{self.pid}/fd/{descriptor}")
        except OSError:
            return None

    def descriptors(self) -> dict[int, str]:
        """Return the open descriptors that are KVM's.

        :raises EnvironmentFault: they may not be read.
        """
        try:
            names = os.listdir(f"/proc/{self.pid}/fd")
        except PermissionError as error:
            raise EnvironmentFault(
                f"the descriptors of process {self.pid} may not be read",
                hint=f"record as root, or as its user (uid {self.user})",
            ) from error
        except OSError as error:
            raise ProcessGone(f"process {self.pid} has ended") from error
        links = ((int(name), self.link(int(name))) for name in names)
        return {fd: link for fd, link in sorted(links) if link and _KVM_FILE.fullmatch(link)}

    def run_mappings(self) -> dict[int, int]:
        """Return the address of ``kvm_run`` by descriptor, as far as it is certain.

        ``/proc/PID/maps`` names the vCPU of a mapping, not its VM: of several vCPUs with the
        same number none is listed.
        """
        places: dict[str, list[int]] = {}
        for start, offset, name in self._maps():
            if offset == 0 and _VCPU.fullmatch(name):
                places.setdefault(name, []).append(start)
        links: dict[str, list[int]] = {}
        for fd, link in self.descriptors().items():
            links.setdefault(link, []).append(fd)
        return {
            links[name][0]: starts[0]
            for name, starts in places.items()
            if len(starts) == 1 and len(links.get(name, ())) == 1
        }

    def _maps(self) -> Iterator[tuple[int, int, str]]:
        try:
            with open(f"/proc/{self.pid}/maps", errors="replace") as file:
                for line in file:
                    parts = line.split(maxsplit=5)
                    if len(parts) == 6:
                        yield (
                            int(parts[0].partition("-")[0], 16),
                            int(parts[2], 16),
                            parts[5].strip(),
                        )
        except OSError:
            return

    def namespace(self) -> int | None:
        """Return the inode of its PID namespace; None if it cannot be read."""
        try:
            return os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        except OSError:
            return None


def find(pid: int) -> Process:
    """Return the process of a number.

    :raises ProcessGone: there is none.
    :raises EnvironmentFault: it is a thread of another one.
    """
    try:
        start, user = _identity(pid)
        leader = _status(pid, "Tgid")
    except (OSError, ValueError) as error:
        raise ProcessGone(
            f"there is no process {pid}",
            hint="of a VMM in a container, give the number that it has on this host",
        ) from error
    if leader != pid:
        raise EnvironmentFault(f"{pid} is a thread", hint=f"its process is {leader}")
    return Process(pid, start, user)


def read_memory(pid: int, address: int, size: int) -> bytes | None:
    """Read memory of a process; None if any of it cannot be read."""
    if not size:
        return b""
    buffer = ctypes.create_string_buffer(size)
    here = _Iovec(ctypes.addressof(buffer), size)
    there = _Iovec(address & (1 << 64) - 1, size)
    done = _libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return buffer.raw if done == size else None


def _identity(pid: int) -> tuple[int, int]:
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name may contain anything, also parentheses.
        fields = file.read().rpartition(b")")[2].split()
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return int(fields[_START_TIME]), _status(pid, "Uid")


def _status(pid: int, name: str) -> int:
    with open(f"/proc/{pid}/status", errors="replace") as file:
        for line in file:
            if line.startswith(name + ":"):
                return int(line.split()[1])
    raise ValueError(name)
