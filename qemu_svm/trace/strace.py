"""Parser of ``strace -f -e trace=ioctl``, with or without ``-y -t -T -X raw``.

::

    [pid 27643] ioctl(9<anon_inode:kvm-vcpu:0>, KVM_SET_SREGS2, 0x7f66291fe390) = 0
    27610      0.000029 ioctl(9, 0x4080aebf, 0x5635) = -1 EINVAL (Invalid argument)
    1792  ioctl(13, KVM_RUN <unfinished ...>
    1792  <... ioctl resumed>, 0)           = -1 EINTR (Interrupted system call)

A call that another thread's output interrupts is in two parts; it is reported when it
returns, because that is when KVM is done with the vCPU.  Threads share descriptors;
in logs of several processes at once descriptors may be confused.

Source: strace 6.1, ``strace(1)`` and real output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

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

_PID = r"^(?:\[pid\s{1,8}(\d{1,10})\] |(\d{1,10}) )?[^(<]{0,64}?"
_START = re.compile(
    _PID + r"(?<!\w)ioctl\((?P<fd>-?\d{1,10})(?:<(?P<what>.*?)>)?, "
    r"(?:(?P<raw>0x[0-9a-fA-F]{1,16})|_IOC\((?P<ioc>[^)]{1,80})\)"
    r"|(?P<names>[A-Z]\w{0,63}(?: or [A-Z]\w{0,63})*))"
)
_RESUMED = re.compile(_PID + r"<\.\.\. ioctl resumed>")
_RESULT = re.compile(
    r".*\)\s+= (?P<value>\?|-?\d{1,20})(?:<(?P<what>[^>]*)>)?(?: (?P<errno>E\w+))?"
)
_VCPU = re.compile(r"kvm-vcpu:(\d{1,6})")
_KINDS = (
    ("kvm-vcpu", Level.VCPU), ("kvm-vm", Level.VM), ("/dev/kvm", Level.SYSTEM),
)  # fmt: skip
_NUMBER = re.compile(r", (?:0x[0-9a-fA-F]{1,8} )?(\d{1,6})\)")
_EFER = re.compile(r"\befer=(0x[0-9a-fA-F]{1,16}|\d{1,20})")
_ASKED = re.compile(r"\bnmsrs=(\d{1,9})")
_CAPABILITY = re.compile(r", (KVM_CAP_\w{1,64}|0x[0-9a-fA-F]{1,8}|\d{1,9})\)")
_IOC_WAYS = {"_IOC_NONE": 0, "_IOC_WRITE": 1, "_IOC_READ": 2, "0": 0}
_UNFINISHED = "<unfinished ...>"
_TAIL = 400


@dataclass(frozen=True, slots=True)
class _Pending:
    # The first part of a call.
    line: int
    fd: int
    index: int | None
    name: str
    number: int | None
    arg: int | None
    efer: int | None
    asked: int | None
    argument: str
    on: Level | None


class Strace:
    """Parser of strace's output."""

    format = Format.STRACE

    def __init__(self, descriptors: Descriptors, pending: int) -> None:
        self._descriptors = descriptors
        self._limit = pending
        self._pending: dict[str, _Pending] = {}

    def read(self, line: int, text: str) -> list[Call | RunExit] | None:
        """Return the calls that a line completes; None if it is not an ioctl of KVM."""
        start = _START.match(text)
        if start is not None:
            return self._start(line, text, start)
        resumed = _RESUMED.match(text)
        if resumed is None:
            return None
        begun = self._pending.pop(resumed[1] or resumed[2] or "", None)
        return None if begun is None else [self._done(begun, text)]

    def finish(self) -> list[Call | RunExit]:
        """Return the calls that never returned."""
        left = list(self._pending.values())
        self._pending.clear()
        return [self._done(begun, "") for begun in left]

    def _start(self, line: int, text: str, start: re.Match[str]) -> list[Call | RunExit] | None:
        begun = _pending(line, text, start)
        if begun is None:
            return None
        if _UNFINISHED in text[-_TAIL:]:
            if len(self._pending) < self._limit:
                self._pending[start[1] or start[2] or ""] = begun
            return []
        return [self._done(begun, text)]

    def _done(self, begun: _Pending, text: str) -> Call:
        ioctl = None if begun.number is None else numbers.by_number(begun.number)
        value, error, made = _result(text)
        vcpu = None
        if begun.on in (None, Level.VCPU):
            vcpu = self._descriptors.vcpu(begun.fd, begun.index, ioctl)
        level = Level.VCPU if vcpu is not None else level_of(ioctl)
        if begun.efer is None and text and begun.name.startswith("KVM_GET_SREGS"):
            begun = replace(begun, efer=_hex(_EFER, text, 0))  # printed when it returned
        if begun.name == "KVM_CREATE_VCPU":
            level = Level.VM
            vcpu = None
            if value is not None and value >= 0:
                index = made if made is not None else begun.arg
                vcpu = self._descriptors.created(value, index, begun.line)
        return Call(
            begun.line, begun.name, begun.number, level, vcpu, value, error, begun.efer,
            begun.asked, begun.argument, Level.VCPU if vcpu is not None else begun.on,
        )  # fmt: skip


def _pending(line: int, text: str, start: re.Match[str]) -> _Pending | None:
    # None for an ioctl that is not KVM's.
    number = _number(start)
    if number is not None:
        if not numbers.is_kvm(number):
            return None
        name = numbers.name_of(number)
    else:
        kvm = [name for name in (start["names"] or "").split(" or ") if name.startswith("KVM_")]
        if not kvm:
            return None
        known = next((name for name in kvm if numbers.by_name(name)), None)
        name = known or kvm[0]
        ioctl = numbers.by_name(name)
        number = ioctl.number if ioctl is not None else None
    vcpu = _VCPU.search(start["what"] or "")
    arg = _NUMBER.match(text, start.end()) if name == "KVM_CREATE_VCPU" else None
    capability = name == "KVM_CHECK_EXTENSION" and _CAPABILITY.match(text, start.end())
    return _Pending(
        line,
        int(start["fd"]),
        int(vcpu[1]) if vcpu else None,
        name,
        number,
        int(arg[1]) if arg else None,
        _hex(_EFER, text, start.end()) if "ET_SREGS" in name else None,
        _hex(_ASKED, text, start.end()) if name.endswith("ET_MSRS") else None,
        capability[1] if capability else "",
        next((level for text, level in _KINDS if text in (start["what"] or "")), None),
    )


def _hex(pattern: re.Pattern[str], text: str, start: int) -> int | None:
    found = pattern.search(text, start)
    return int(found[1], 16 if found[1].startswith("0x") else 10) if found else None


def _number(start: re.Match[str]) -> int | None:
    if start["raw"]:
        return int(start["raw"], 16) & 0xFFFF_FFFF
    if start["ioc"]:
        # _IOC(_IOC_READ|_IOC_WRITE, 0xae, 0xca, 0x48)
        way, *rest = start["ioc"].split(", ")
        try:
            kind, nr, size = (int(part, 0) & 0x3FFF for part in rest)
        except ValueError:
            return None
        bits = sum(_IOC_WAYS.get(part, 0) for part in set(way.split("|")))
        return bits << 30 | size << 16 | (kind & 0xFF) << 8 | nr & 0xFF
    return None


def _result(text: str) -> tuple[int | None, str | None, int | None]:
    # The value returned, the error, and the vCPU whose descriptor the result is.
    found = _RESULT.match(text[-_TAIL:])
    if found is None or found["value"] == "?":
        return None, None, None
    value = int(found["value"])
    made = _VCPU.search(found["what"] or "")
    error = found["errno"] or errno_name(value) if value < 0 else None
    return value, error, int(made[1]) if made else None
