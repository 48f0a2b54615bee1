"""Parser of QEMU's trace log: ``-trace kvm_vcpu_ioctl -D FILE`` and related events.

::

    kvm_vcpu_ioctl cpu_index 0, type 0x4140aecd, arg 0x7ffd2c5f1a40
    123@1795345676.199948:kvm_vm_ioctl type 0xae41, arg (nil)
    kvm_run_exit cpu_index 0, reason 2

The prefix is the thread and the time.  Events may follow other text on the line (a
syslog prefix, the kernel's ``tracing_mark_write``), so they are searched for, not
matched from the start.

Source: QEMU ``accel/kvm/trace-events`` and ``scripts/tracetool/backend/log.py``
(5.2 to 11.1; the names of the events did not change).
"""

from __future__ import annotations

import re

from qemu_svm.kvm import numbers
from qemu_svm.kvm.numbers import Level
from qemu_svm.trace.calls import Call, Format, RunExit, VcpuId

_EVENT = re.compile(
    r"\bkvm_(?:"
    r"vcpu_ioctl cpu_index (?P<vcpu>\d{1,6}), type (?P<vcpu_type>0x[0-9a-fA-F]{1,16})"
    r"|(?P<level>vm_|device_|)ioctl (?:dev fd -?\d+, )?type (?P<type>0x[0-9a-fA-F]{1,16})"
    r"|run_exit cpu_index (?P<exit>\d{1,6}), reason (?P<reason>\d{1,9})\b"
    r")"
)
_LEVELS = {"": Level.SYSTEM, "vm_": Level.VM, "device_": Level.DEVICE}


class QemuLog:
    """Parser of QEMU's trace log."""

    format = Format.QEMU

    def read(self, line: int, text: str) -> list[Call | RunExit] | None:
        """Return the event of a line; None if it has none of these events."""
        found = _EVENT.search(text)
        if found is None:
            return None
        if found["exit"]:
            return [RunExit(line, VcpuId(int(found["exit"])), int(found["reason"]))]
        number = int(found["vcpu_type"] or found["type"], 16) & 0xFFFF_FFFF
        name = numbers.name_of(number)
        if found["vcpu"]:
            return [Call(line, name, number, Level.VCPU, VcpuId(int(found["vcpu"])))]
        return [Call(line, name, number, _LEVELS[found["level"]])]

    def finish(self) -> list[Call | RunExit]:
        """Return nothing: every event is one line."""
        return []
