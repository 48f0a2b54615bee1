"""Logs for the tests: the real ones of ``streams``, and made ones in their syntax.

``logs`` holds more real ones: ``refused.strace`` and ``refused.ftrace`` are
strace 6.1 and Linux 6.18's tracefs watching the same Python program, which puts
nested state on a KVM that has none and runs on regardless;
``qemu7.2-smp2-restore.strace.zst`` is a QEMU 7.2 that restores two vCPUs there.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qemu_svm.kvm import numbers
from qemu_svm.limits import DEFAULT, Limits
from qemu_svm.source import BytesSource, open_source
from qemu_svm.trace.model import Trace, read_trace
from qemu_svm.trace.verdict import Put, RuleOutcome

HERE = Path(__file__).resolve().parent
REAL = HERE / "logs"
STREAMS = HERE.parents[1] / "streams"
LOGS: list[dict[str, Any]] = json.loads((STREAMS / "logs.json").read_text())["logs"]
RESTORES = [log for log in LOGS if log["provenance"]["kind"] == "restore"]


def read_file(path: Path) -> Trace:
    with open_source(str(path)) as source:
        return read_trace(source)


def text_of(path: Path) -> str:
    with open_source(str(path)) as source:
        return source.read_at(0, source.size()).decode()


def read_text(text: str, limits: Limits = DEFAULT) -> Trace:
    return read_trace(BytesSource(text.encode(), "made.log"), limits)


def number(name: str) -> int:
    ioctl = numbers.by_name(name)
    assert ioctl is not None, name
    return ioctl.number


def qemu_log(names: Iterable[str], vcpu: int = 0) -> str:
    """Lines of QEMU's log: ``SET_REGS`` is the vCPU's, ``vm CREATE_VCPU`` the VM's."""
    lines = []
    for name in names:
        level, _, rest = name.rpartition(" ")
        if level:
            lines.append(f"kvm_{level}_ioctl type {number(rest):#x}, arg (nil)")
        elif name.startswith("exit="):
            lines.append(f"kvm_run_exit cpu_index {vcpu}, reason {name[5:]}")
        else:
            lines.append(f"kvm_vcpu_ioctl cpu_index {vcpu}, type {number(name):#x}, arg 0x7f00")
    return "".join(f"{line}\n" for line in lines)


def strace(calls: Iterable[str], fd: int = 9) -> str:
    """Lines of strace: ``SET_REGS`` succeeds, ``SET_REGS=EINVAL`` does not."""
    lines = []
    for call in calls:
        name, _, error = call.partition("=")
        name, _, data = name.partition(":")
        done = "9" if name.endswith("_MSRS") else "0"
        result = f"-1 {error} (some words)" if error else done
        what = f"{{{data.replace(':', '=')}}}" if data else "0x7f66291fe390"
        lines.append(f"ioctl({fd}<anon_inode:kvm-vcpu:0>, KVM_{name}, {what}) = {result}")
    return "".join(f"{line}\n" for line in lines)


CREATION = ("GET_TSC_KHZ", "X86_SETUP_MCE", "SET_CPUID2", "SET_MSRS")
PUT = (
    *("SET_SREGS2", "SET_NESTED_STATE", "SET_REGS", "SET_XSAVE", "SET_XCRS", "SET_MSRS"),
    *("SET_VCPU_EVENTS", "SET_MP_STATE", "SET_MSRS", "SET_DEBUGREGS"),
)


def never_again(size: int) -> list[int]:
    """Numbers 0 to 2 in which nothing comes twice in a row, however long.

    They tell where the bits of the Thue-Morse sequence stay, rise or fall.
    """
    bits = [at.bit_count() & 1 for at in range(size + 1)]
    return [(b - a) % 3 for a, b in itertools.pairwise(bits)]


def puts_of(trace: Trace) -> tuple[Put, ...]:
    return tuple(put for vcpu in trace.vcpus for put in vcpu.puts)


def outcomes(put: Put) -> dict[str, RuleOutcome]:
    return {one.rule.id: one.outcome for one in put.results}


def violated(put: Put) -> set[str]:
    return {one.rule.id for one in put.results if one.bad}


def shorts(put: Put) -> Sequence[str]:
    return [step.short for step in put.order]
