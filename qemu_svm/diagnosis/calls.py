"""A program's words about an ioctl that KVM refused: which ioctl, which errno.

Programs word it differently: ``Failed to set special registers: Invalid argument (os
error 22)``, ``VcpuSetSregs(Error(22))``, ``failed to set MSR 0xc0000080 to 0x1500``,
``error: kvm run failed Input/output error``.  The line is split into words, ``CamelCase`` too,
and searched for a state, a direction and an errno.

Source: ``hypervisor/src/cpu.rs`` of Cloud Hypervisor, ``src/vmm/src/vstate/vcpu`` of
Firecracker, ``hypervisor/src/kvm`` of crosvm, ``target/i386/kvm/kvm.c`` and
``accel/kvm/kvm-all.c`` of QEMU.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_PLURAL = re.compile(r"[A-Z]{2,10}s\b")
"""MSRs and XCRs are one word each."""

_NOT_WORD = re.compile(r"[^a-z0-9]+")
_IOCTL = re.compile(r"\bKVM_(?P<name>(?:SET|GET)_[A-Z0-9_]{2,40}|RUN|CREATE_VCPU|CREATE_VM"
                    r"|CHECK_EXTENSION"
                    r"|CREATE_IRQCHIP)\b")  # fmt: skip

_STATES = (
    ("NESTED_STATE", "nested (?:\\w+ ){0,2}state|nestedstate|nested registers|nested guest"),
    ("VCPU_EVENTS", "vcpu (?:s )?events?|vcpuevents?|pending events|exception state"),
    ("MSRS", "msrs|msr entries|model specific registers?|msr"),
    ("XCRS", "xcrs|xcsr|xcr0|xcr|extended control registers?"),
    ("SREGS2", "sregs2|sregs 2"),
    ("SREGS", ("sregs|special registers?|special regs|system registers?|control registers?"
     "|segment registers?")),
    ("DEBUGREGS", "debugregs|debug registers?|debug regs|dregs"),
    ("XSAVE", "xsave2?|extended (?:processor |save )?state"),
    ("LAPIC", "lapic|local apic|local interrupt controller|apic state"),
    ("CPUID2", "cpuid2?|cpu id|cpuid entries"),
    ("MP_STATE", "mp state|mpstate|multi ?process(?:or|ing) state|mp states"),
    ("TSC_KHZ", "tsc khz|tsc frequency|tsc freq"),
    ("FPU", "fpu|floating point(?: registers?| state)?"),
    ("REGS", ("regs|general purpose registers?|gp ?regs|gprs|standard registers?|core registers?"
     "|vcpu registers?|registers")),
)  # fmt: skip
_COMMON = frozenset({"REGS", "DEBUGREGS", "FPU", "LAPIC"})
_CONTEXT = re.compile(r"kvm|v ?cpu|qemu|vmm\b|hypervisor|guest|general purpose|crosvm|firecracker")
"""Other programs have registers too."""

_STATE = tuple((name, re.compile(rf"\b(?:{words})\b")) for name, words in _STATES)
_RUN = re.compile(
    r"\b(?:kvm run (?:failed|returned|ioctl)|(?:fail(?:ed|ure)?|error|cannot|could not|unable)"
    r"(?: to)? (?:run(?:ning)?|emulat\w+|enter(?:ing)?|resum\w+) (?:the )?(?:kvm )?(?:v ?cpu|guest)"
    r"|v ?cpu ?run (?:failed|error)|running (?:the )?v ?cpu|vcpu thread .*\brun\b|kvm run)\b"
)
_FAILED = re.compile(
    r"\b(?:fail(?:ed|ure|s|ing)?|error|cannot|can t|could not|couldn t|unable|refused|rejected"
    r"|invalid argument|returned|panicked|assertion)\b"
)
_GET = re.compile(r"\b(?:get|getting|read|reading|save|saving|fetch|dump|snapshot|retrieve)\b")
_SET = re.compile(
    r"\b(?:set|setting|put|putting|write|writing|restore|restoring|load|loading|apply|applying"
    r"|configure|configuring|init|setup)\b"
)
_NUMBER = re.compile(
    r"(?:os error|errno:?|error code|code:?|rc ?=?|ret(?:urned|val)?:? ?=?|returned|err:?)[ (=:]*"
    r"-?(?P<number>\d{1,3})\b|\bE?Err(?:or|no)?\((?P<inner>-?\d{1,3})\)|(?<![\w.])-(?P<minus>\d{1,2})\b"
    r"(?!\.\d)|\((?P<bare>\d{1,2})\)\s*$",
    re.IGNORECASE,
)
_SYMBOL = re.compile(r"\bE(?:2BIG|[A-Z]{2,12})\b")
_TEXTS = tuple(
    (os.strerror(number).lower(), name)
    for number, name in sorted(errno.errorcode.items())
    if name in {"EPERM", "EIO", "E2BIG", "EBADF", "EAGAIN", "ENOMEM", "EACCES", "EFAULT", "EBUSY",
                "EEXIST", "ENODEV", "EINVAL", "ENOTTY", "ENOSPC", "ENOSYS", "EINTR", "ENXIO"}
)  # fmt: skip
_MSR = re.compile(
    r"\bMSR[ #:]{0,2}(?P<msr>0x[0-9a-f]{1,8})(?:[^0-9]{1,12}(?P<value>0x[0-9a-f]{1,16}))?",
    re.IGNORECASE,
)
_PUT = re.compile(r"\b(?:failed to|could not|error) (?:put|load) registers\b")
_ASSERTED = re.compile(r"ret == cpu->kvm_msr_buf->nmsrs")


@dataclass(frozen=True, slots=True)
class CallWords:
    """An ioctl that failed, by a program's words.

    :param ioctl: its name without ``KVM_``; ``PUT`` if it is one of those that set a vCPU's
        state.
    :param error: name of the errno; None if the words do not say.
    :param msr: the MSR that the words name.
    :param value: what was written to it.
    """

    ioctl: str
    error: str | None
    msr: int | None = None
    value: int | None = None


def failed_call(text: str) -> CallWords | None:
    """Read which ioctl a line says failed; None if it says nothing of the kind."""
    whole = _PLURAL.sub(lambda found: found[0].lower(), text.replace("vCPU", "vcpu"))
    low = _NOT_WORD.sub(" ", _CAMEL.sub(" ", whole).lower())
    error = error_of(text)
    msr = _MSR.search(text)
    put = _PUT.search(low)
    if put is not None:
        # QEMU 10.2 and later add the cause.
        return CallWords(_named(low[put.end() :]) or "PUT", error)
    if _ASSERTED.search(text):
        return CallWords("SET_MSRS", None)
    if not (_FAILED.search(low) or error):
        return None
    named = _IOCTL.search(text.upper().replace("KVM_SET_MSR ", "KVM_SET_MSRS "))
    if named is not None:
        ioctl = named["name"]
    elif _RUN.search(low):
        ioctl = "RUN"
    else:
        found = _named(low)
        if found is None:
            return None
        ioctl = found
    if error is None and not _FAILED.search(low):
        return None
    value = None if msr is None or msr["value"] is None else int(msr["value"], 16)
    return CallWords(ioctl, error, None if msr is None else int(msr["msr"], 16), value)


def _named(low: str) -> str | None:
    for name, pattern in _STATE:
        found = pattern.search(low)
        if found is None or (name in _COMMON and not _CONTEXT.search(low)):
            continue
        around = low[max(0, found.start() - 60) : found.start()]
        get, put = _last(_GET, around), _last(_SET, around)
        if get < 0 and put < 0:
            get, put = _last(_GET, low), _last(_SET, low)
        if get < 0 and put < 0:
            return None
        return f"{'GET' if get > put else 'SET'}_{name}"
    return None


def _last(pattern: re.Pattern[str], text: str) -> int:
    return max((one.start() for one in pattern.finditer(text)), default=-1)


def error_of(text: str) -> str | None:
    """Read an errno from a line: its name, its text, or its number after a word like errno."""
    for symbol in _SYMBOL.findall(text):
        if symbol in errno.errorcode.values():
            return str(symbol)
    low = text.lower()
    for words, name in _TEXTS:
        if words in low:
            return name
    for found in _NUMBER.finditer(text):
        number = abs(int(next(one for one in found.groups() if one is not None)))
        if number in errno.errorcode:
            return errno.errorcode[number]
    return None
