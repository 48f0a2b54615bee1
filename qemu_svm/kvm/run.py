"""KVM_RUN with a time limit, and the reason of its end.

A signal makes KVM_RUN return EINTR.  A signal that arrives just before the ioctl
would be lost, so the timer continues to fire, and its handler also sets
``immediate_exit``, which KVM_RUN checks when it starts.

Source: Linux ``include/uapi/linux/kvm.h`` (``struct kvm_run``), 6.1.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import signal
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType

from qemu_svm.kvm import layouts
from qemu_svm.kvm.device import Vcpu

RUN_BYTES = 256
"""Bytes at the start of ``kvm_run`` that contain the reason of its end."""
_RUN = 0xAE80
_UNION = 32
_IMMEDIATE_EXIT = 1
_INTERVAL = 0.02  # seconds between two alarms after the time limit

IO, HLT, MMIO, SHUTDOWN, FAIL_ENTRY, INTR, INTERNAL_ERROR = 2, 5, 6, 8, 9, 10, 17
REASONS = {
    0: "UNKNOWN",
    1: "EXCEPTION",
    2: "IO",
    3: "HYPERCALL",
    4: "DEBUG",
    5: "HLT",
    6: "MMIO",
    7: "IRQ_WINDOW_OPEN",
    8: "SHUTDOWN",
    9: "FAIL_ENTRY",
    10: "INTR",
    11: "SET_TPR",
    12: "TPR_ACCESS",
    16: "NMI",
    17: "INTERNAL_ERROR",
    22: "WATCHDOG",
    24: "SYSTEM_EVENT",
    26: "IOAPIC_EOI",
    27: "HYPERV",
    29: "X86_RDMSR",
    30: "X86_WRMSR",
    31: "DIRTY_RING_FULL",
    33: "X86_BUS_LOCK",
    34: "XEN",
    37: "NOTIFY",
    39: "MEMORY_FAULT",
}


@dataclass(frozen=True)
class Exit:
    """The end of a KVM_RUN.

    :param errno: of the ioctl; 0 if it succeeded.
    :param reason: exit reason (``KVM_EXIT_...``); undefined unless errno is 0.
    :param detail: members of the union of ``kvm_run``, for the reasons that have some here.
    """

    errno: int
    reason: int
    detail: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the errno, else of the reason."""
        if self.errno:
            return errno.errorcode.get(self.errno, f"errno {self.errno}")
        return REASONS.get(self.reason, f"exit {self.reason}")


def decode(page: bytes, error: int = 0) -> Exit:
    """Return the end that ``kvm_run`` records.

    :param page: at least :data:`RUN_BYTES` bytes of it.
    :param error: errno of the ioctl.
    """
    reason = layouts.RUN.unpack(page)["exit_reason"]
    detail: dict[str, int] = {}
    if error == 0 and reason == IO:
        detail = _named("<BBHIQ", page, ("out", "size", "port", "count", "data_offset"))
    elif error == 0 and reason == MMIO:
        detail = _named("<QQIB", page, ("address", "data", "length", "write"))
    elif error == 0 and reason == INTERNAL_ERROR:
        detail = _named("<II", page, ("suberror", "ndata"))
    elif error == 0 and reason == FAIL_ENTRY:
        detail = _named("<QI", page, ("hardware_reason", "cpu"))
    return Exit(error, reason, detail)


def _named(format_: str, page: bytes, names: tuple[str, ...]) -> dict[str, int]:
    return dict(zip(names, struct.unpack_from(format_, page, _UNION)))


@contextlib.contextmanager
def alarm(vcpu: Vcpu, seconds: float) -> Iterator[list[bool]]:
    """Make KVM_RUN in this thread end after ``seconds``.

    The only element of the list is True after that.  For the main thread only, as all of
    Python's signals.
    """
    expired = [False]

    def handler(_signal: int, _frame: FrameType | None) -> None:
        expired[0] = True
        vcpu.run_page[_IMMEDIATE_EXIT] = 1

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds, _INTERVAL)
    try:
        yield expired
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        vcpu.run_page[_IMMEDIATE_EXIT] = 0


def run(vcpu: Vcpu, seconds: float, *, stop_port: int | None = None) -> Exit:
    """Run until an exit that user space has to handle; return it.

    Port and memory accesses are answered with zeros, and the run continues, except
    for an OUT to ``stop_port``.

    :param seconds: after which it ends with EINTR.
    """
    with alarm(vcpu, seconds) as expired:
        while True:
            error = _enter(vcpu)
            found = decode(vcpu.run_page[:RUN_BYTES], error)
            if error in (errno.EINTR, errno.EAGAIN) and not expired[0]:
                continue
            if error or found.reason not in (IO, MMIO) or expired[0]:
                return found
            if found.reason == IO and found.detail["port"] == stop_port:
                return found
            _answer(vcpu, found)


def _enter(vcpu: Vcpu) -> int:
    # The errno of one KVM_RUN.  Not by fcntl.ioctl: from Python 3.14 on that repeats the
    # call after EINTR, and would never return.
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.ioctl(vcpu.fd, ctypes.c_ulong(_RUN), ctypes.c_ulong(0))
    return ctypes.get_errno() if failed else 0


def _answer(vcpu: Vcpu, found: Exit) -> None:
    detail = found.detail
    if found.reason == IO and not detail["out"]:
        size = detail["size"] * detail["count"]
        start = detail["data_offset"]
        vcpu.run_page[start : start + size] = bytes(size)
    elif found.reason == MMIO and not detail["write"]:
        vcpu.run_page[_UNION + 8 : _UNION + 16] = bytes(8)
