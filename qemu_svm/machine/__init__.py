"""A stream seen as a machine."""

from __future__ import annotations

from qemu_svm.machine.model import Machine, read_machine, type_version
from qemu_svm.machine.vcpu import Vcpu

__all__ = ["Machine", "Vcpu", "read_machine", "type_version"]
