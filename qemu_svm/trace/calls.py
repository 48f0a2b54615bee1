"""What a line of a log says: an ioctl that was called, or how KVM_RUN ended.

The three kinds of log know different things.  QEMU's own names the vCPU but
not the result; strace and the kernel's event trace know the result, and of the
vCPU only its file descriptor, unless strace was asked (``-y``) to say what the
descriptor is or KVM_CREATE_VCPU is in the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from qemu_svm.kvm import numbers
from qemu_svm.kvm.numbers import Level


class Format(StrEnum):
    """Kinds of log."""

    QEMU = "QEMU log"
    STRACE = "strace"
    FTRACE = "trace-cmd"


@dataclass(frozen=True, slots=True)
class VcpuId:
    """Which vCPU.

    :param index: its number, if the log says so.
    :param fd: its file descriptor, if that is what the log has.
    :param born: line of its KVM_CREATE_VCPU; tells apart vCPUs that had the
        same descriptor one after the other.
    """

    index: int | None
    fd: int | None = None
    born: int | None = None

    @property
    def label(self) -> str:
        """``vCPU 0``, ``vCPU 0 (fd 9)`` or ``vCPU of fd 9``."""
        if self.index is None:
            return f"vCPU of fd {self.fd}"
        return f"vCPU {self.index}" + ("" if self.fd is None else f" (fd {self.fd})")


@dataclass(frozen=True, slots=True)
class Call:
    """One ioctl.

    :param line: where it begins in the log, from 1.
    :param name: ``KVM_SET_SREGS``, or what an unknown number is made of.
    :param number: its number, if the log or the table has it.
    :param level: what the descriptor is.
    :param vcpu: whose it is; also set for the KVM_CREATE_VCPU that made it.
    :param value: what it returned; None if the log does not say.
    :param error: name of the errno it failed with.
    :param efer: EFER among its data, where strace printed them.
    """

    line: int
    name: str
    number: int | None
    level: Level
    vcpu: VcpuId | None = None
    value: int | None = None
    error: str | None = None
    efer: int | None = None


@dataclass(frozen=True, slots=True)
class RunExit:
    """KVM_RUN came back with this exit reason (``kvm_run_exit`` of QEMU)."""

    line: int
    vcpu: VcpuId
    reason: int


class Reader(Protocol):
    """Reads one kind of log."""

    format: Format

    def read(self, line: int, text: str) -> list[Call | RunExit] | None:
        """Say which calls a line completes; None if it has nothing to do with KVM here."""
        ...

    def finish(self) -> list[Call | RunExit]:
        """Return what was still under way when the log ended."""
        ...


class Descriptors:
    """What the file descriptors in a log are."""

    def __init__(self, limit: int) -> None:
        self._vcpus: dict[int, VcpuId] = {}
        self._limit = limit

    def born(self, fd: int, index: int | None, line: int) -> VcpuId | None:
        """KVM_CREATE_VCPU returned ``fd``."""
        return self._keep(fd, VcpuId(index, fd, line))

    def vcpu(self, fd: int, index: int | None, ioctl: numbers.Ioctl | None) -> VcpuId | None:
        """Whose the descriptor is, if it is a vCPU's.

        :param index: what the log itself says about the descriptor.
        :param ioctl: an ioctl that only vCPUs have proves it too.
        """
        known = self._vcpus.get(fd)
        if known is not None and index in (None, known.index):
            return known
        if index is not None or (ioctl is not None and ioctl.levels == (Level.VCPU,)):
            return self._keep(fd, VcpuId(index, fd))
        return None

    def _keep(self, fd: int, vcpu: VcpuId) -> VcpuId | None:
        if len(self._vcpus) >= self._limit and fd not in self._vcpus:
            return None
        self._vcpus[fd] = vcpu
        return vcpu


def level_of(ioctl: numbers.Ioctl | None) -> Level:
    """Where an ioctl belongs that was not called on a known vCPU."""
    if ioctl is None:
        return Level.VM
    return next((level for level in ioctl.levels if level is not Level.VCPU), Level.VCPU)


def errno_name(value: int) -> str | None:
    """Name of the error in a system call's result, None if it is none."""
    if not -4096 < value < 0:
        return None
    import errno

    return errno.errorcode.get(-value, f"errno {-value}")
