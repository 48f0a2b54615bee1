"""Parser of the kernel's system call events, as trace-cmd, perf and tracefs print them.

::

    CPU 0/KVM-1347  [001]  4146.353664: sys_enter_ioctl: fd: 0x05, cmd: 0x4080aebf, arg: 0x55d0
    CPU 0/KVM-1347  [001]  4146.353670: sys_exit_ioctl:  0xffffffffffffffea
    python3-1347    [000] .....  4146.353664: sys_ioctl(fd: 5, cmd: 0x4080aebf, arg: 0x55d0)
    python3-1347    [000] .....  4146.353670: sys_ioctl -> 0xffffffffffffffea

Recorded with ``trace-cmd record -e syscalls:sys_enter_ioctl -e
syscalls:sys_exit_ioctl``.  A call is reported at its exit event.  All numbers are
hexadecimal, with or without ``0x``.

Source: Linux ``kernel/trace/trace_syscalls.c`` (6.1, 6.18) and the ``format``
files of the two events.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qemu_svm.kvm import numbers
from qemu_svm.kvm.numbers import Level
from qemu_svm.trace.calls import (
    Call,
    Descriptors,
    Format,
    RunExit,
    errno_name,
    level_of,
)

_ENTER = re.compile(
    r"\bsys_(?:enter_ioctl:\s{0,16}|ioctl\()fd: (?:0x)?(?P<fd>[0-9a-f]{1,16}),"
    r" cmd: (?:0x)?(?P<cmd>[0-9a-f]{1,16})(?:, arg: (?:0x)?(?P<arg>[0-9a-f]{1,16}))?"
)
_EXIT = re.compile(r"\bsys_(?:exit_ioctl:\s{0,16}|ioctl -> )(?P<value>(?:0x)?[0-9a-f]{1,16})")
_TASK = re.compile(r"[-\s](\d{1,10})(?:/\d{1,10})?\s{1,16}(?:\([^)]{0,32}\)\s{1,16})?\[\d{1,5}\]")


@dataclass(frozen=True, slots=True)
class _Pending:
    # An enter event without its exit event yet.
    line: int
    fd: int
    number: int
    arg: int


class Ftrace:
    """Parser of sys_enter_ioctl and sys_exit_ioctl."""

    format = Format.FTRACE

    def __init__(self, descriptors: Descriptors, pending: int) -> None:
        self._descriptors = descriptors
        self._limit = pending
        self._pending: dict[str, _Pending] = {}

    def read(self, line: int, text: str) -> list[Call | RunExit] | None:
        """Return the calls that a line completes; None if it is not an event of a KVM ioctl."""
        enter = _ENTER.search(text)
        found = enter or _EXIT.search(text)
        if found is None:
            return None
        task = _TASK.search(text, 0, found.start())
        key = task[1] if task else ""
        before = self._pending.pop(key, None)
        done: list[Call | RunExit] = []
        if before is not None:
            # A call without its exit event has no result, but it was made.
            done.append(self._done(before, None if enter else int(found["value"], 16)))
        if enter is None:
            return done or None
        number = int(enter["cmd"], 16) & 0xFFFF_FFFF
        if not numbers.is_kvm(number):
            return done or None
        if len(self._pending) < self._limit:
            fd = int(enter["fd"], 16) & 0xFFFF_FFFF
            self._pending[key] = _Pending(line, fd, number, int(enter["arg"] or "0", 16))
        return done

    def finish(self) -> list[Call | RunExit]:
        """Return the calls that never returned."""
        left = list(self._pending.values())
        self._pending.clear()
        return [self._done(begun, None) for begun in left]

    def _done(self, begun: _Pending, raw: int | None) -> Call:
        name = numbers.name_of(begun.number)
        ioctl = numbers.by_number(begun.number)
        value = raw if raw is None or raw < 1 << 63 else raw - (1 << 64)
        error = None if value is None else errno_name(value)
        vcpu = self._descriptors.vcpu(begun.fd, None, ioctl)
        level = Level.VCPU if vcpu is not None else level_of(ioctl)
        if name == "KVM_CREATE_VCPU":
            level = Level.VM
            vcpu = None
            if value is not None and 0 <= value < 1 << 31:
                vcpu = self._descriptors.created(value, begun.arg & 0xFFFF_FFFF, begun.line)
        on = Level.VCPU if vcpu is not None else None
        capability = f"{begun.arg:#x}" if name == "KVM_CHECK_EXTENSION" else ""
        return Call(
            begun.line, name, begun.number, level, vcpu, value, error, argument=capability, on=on
        )
