"""The contents of a log: calls of ioctls, and how KVM_RUN ended.

A recording has everything.  The other kinds of log have different data: QEMU's own log has
the vCPU but not the result; strace and the kernel's event trace have the result, but of the
vCPU only its file descriptor, unless strace (``-y``) shows what the descriptor is or
KVM_CREATE_VCPU is in the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from qemu_svm.kvm import numbers
from qemu_svm.kvm.numbers import Level


class Format(StrEnum):
    """Kinds of log."""

    QEMU = "QEMU log"
    STRACE = "strace"
    FTRACE = "trace-cmd"
    RECORDING = "recording"


class VcpuId(NamedTuple):
    """A vCPU as a log identifies it.

    :param index: its number, if the log has it.
    :param fd: its file descriptor, if the log has it.
    :param created: line of its KVM_CREATE_VCPU; distinguishes vCPUs that had the
        same descriptor one after the other.
    """

    index: int | None  # type: ignore[assignment]  # tuple's method is not used
    fd: int | None = None
    created: int | None = None

    @property
    def label(self) -> str:
        """``vCPU 0``, ``vCPU 0 (fd 9)`` or ``vCPU of fd 9``."""
        if self.index is None:
            return f"vCPU of fd {self.fd}"
        return f"vCPU {self.index}" + ("" if self.fd is None else f" (fd {self.fd})")


class Call(NamedTuple):
    """One call of an ioctl; a named tuple, because a log has millions of them.

    :param line: of the log where it begins, from 1.
    :param name: ``KVM_SET_SREGS``, or the parts of an unknown number.
    :param number: its number, if the log or the table has it.
    :param level: kind of the file descriptor.
    :param vcpu: the vCPU it was called on, or that KVM_CREATE_VCPU created.
    :param value: the result; None if the log does not have it.
    :param error: name of the errno it failed with.
    :param efer: EFER in the SREGS that were put or read, where strace printed that.
    :param asked: number of MSRs in its argument, where strace printed that.
    :param argument: a number or constant that strace printed as the argument.
    :param on: kind of the file descriptor, if the log tells it; ``level`` is what the
        ioctl should be called on if it does not.
    :param data: bytes that the kernel was given, of a read those that it returned; None if
        the log does not have all of them.
    :param inferred: the log does not have it: what it has shows that it was made.
    """

    line: int
    name: str
    number: int | None
    level: Level
    vcpu: VcpuId | None = None
    value: int | None = None
    error: str | None = None
    efer: int | None = None
    asked: int | None = None
    argument: str = ""
    on: Level | None = None
    data: bytes | None = None
    inferred: bool = False


@dataclass(frozen=True, slots=True)
class RunExit:
    """KVM_RUN returned with this exit reason (``kvm_run_exit`` of QEMU)."""

    line: int
    vcpu: VcpuId
    reason: int


class Reader(Protocol):
    """Parser of one kind of log."""

    format: Format

    def read(self, line: int, text: str) -> list[Call | RunExit] | None:
        """Return the calls that a line completes; None if it has no ioctl of KVM."""
        ...

    def finish(self) -> list[Call | RunExit]:
        """Return the calls that had not returned when the log ended."""
        ...


class Descriptors:
    """The vCPUs behind the file descriptors of a log."""

    def __init__(self, limit: int) -> None:
        self._vcpus: dict[int, VcpuId] = {}
        self._limit = limit

    def created(self, fd: int, index: int | None, line: int) -> VcpuId | None:
        """Record that KVM_CREATE_VCPU returned ``fd``; None above the limit."""
        return self._keep(fd, VcpuId(index, fd, line))

    def vcpu(self, fd: int, index: int | None, ioctl: numbers.Ioctl | None) -> VcpuId | None:
        """Return the vCPU of a descriptor, None if it is not one of a vCPU.

        :param index: the vCPU's number, if the log has it.
        :param ioctl: the ioctl called; one that only vCPUs have identifies it too.
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
    """Return the level of an ioctl that was not called on a known vCPU."""
    if ioctl is None:
        return Level.VM
    return next((level for level in ioctl.levels if level is not Level.VCPU), Level.VCPU)


def errno_name(value: int) -> str | None:
    """Return the name of the error in the result of a system call, None if it succeeded."""
    if not -4096 < value < 0:
        return None
    import errno

    return errno.errorcode.get(-value, f"errno {-value}")
