"""Names of the forms that an input may have if it is no stream."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

NESTED = "nested-state"
SELFTEST = "selftest-state"
RECORDING = "recording"
DOCUMENT = "document"
CLOUD_HYPERVISOR = "cloud-hypervisor"
FIRECRACKER = "firecracker"

WORDS: Mapping[str, str] = MappingProxyType(
    {
        NESTED: "struct kvm_nested_state",
        SELFTEST: "struct kvm_x86_state of a KVM selftest",
        DOCUMENT: "document of inspect --json",
        CLOUD_HYPERVISOR: "Cloud Hypervisor snapshot",
        FIRECRACKER: "Firecracker snapshot",
        RECORDING: "recording of KVM's ioctls",
    }
)
"""Forms in words."""


class Beside(NamedTuple):
    """What is given with an input that is no stream.

    :param files: further structures of vCPU 0, each in a file of its own, by the option's name.
    :param memory: the file with the guest's memory, of a form that has it apart.
    :param put, vm: which part of a recording, see
        :func:`~qemu_svm.snapshots.recorded.read_puts`.
    """

    files: Mapping[str, str]
    memory: str | None = None
    put: int | None = None
    vm: int | None = None

    @property
    def option(self) -> str | None:
        """An option that is given; None if there is none."""
        others = {"memory": self.memory, "put": self.put, "vm": self.vm}
        given = (name for name, value in others.items() if value is not None)
        return next(iter(self.files), None) or next(given, None)
