"""What a recording has of a vCPU beyond its state: the ioctls of one put, as they were."""

from __future__ import annotations

from dataclasses import dataclass, field

CAP_EXCEPTION_PAYLOAD, CAP_TRIPLE_FAULT = 164, 218
"""Numbers of the capabilities without which KVM refuses flags of KVM_SET_VCPU_EVENTS (Linux
``include/uapi/linux/kvm.h``)."""


@dataclass(frozen=True, slots=True)
class ReadBack:
    """What a KVM_GET_* ioctl returned during a put.

    :param name: of the structure, the ioctl's after ``GET_``.
    :param record: number of the record.
    """

    name: str
    record: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Given:
    """One ioctl of a put.

    :param name: ``SET_SREGS``; without ``KVM_``.
    :param record: number of the record, from 1; in JSON lines the line.
    :param data: the bytes that KVM was given.
    :param argument: the third argument, if it is a number.
    :param errno: name of the error; None if it succeeded.
    :param taken: of SET_MSRS: how many were taken.
    :param read: what was read after it and before the next one.
    :param ran: the vCPU ran after it and before the put: CPUID of an earlier one.
    """

    name: str
    record: int
    data: bytes = field(repr=False)
    argument: int = 0
    errno: str | None = None
    taken: int = 0
    read: tuple[ReadBack, ...] = ()
    ran: bool = False


@dataclass(frozen=True, slots=True)
class RecordedPut:
    """The ioctls on a vCPU between two runs.

    :param number: of the put among those of its vCPU, from 1; ``count`` is how many there are.
    :param ran: whether the vCPU ran afterwards; None in a recording without any KVM_RUN.
    :param capabilities: numbers of those that were enabled for the VM.
    :param irqchip: whether the VM has KVM's interrupt controllers; None if it does not show.
    :param lost: calls that the recorder could not keep, before the end of the put.
    :param release: of the kernel that was recorded; empty if it is not known.
    :param vm: number of the VM, from 1; ``vms`` is how many have puts.
    :param created: the recording has the vCPU's creation, so that CPUID which it does not have
        was not set.
    :param supported: what KVM_GET_SUPPORTED_CPUID returned: of the host; empty if it was not read.
    """

    number: int
    count: int
    calls: tuple[Given, ...]
    ran: bool | None
    capabilities: frozenset[int] = frozenset()
    irqchip: bool | None = None
    lost: int = 0
    release: str = ""
    vm: int = 1
    vms: int = 1
    created: bool = False
    supported: bytes = field(default=b"", repr=False)

    @property
    def label(self) -> str:
        """Which put it is, in words."""
        first, last = self.calls[0].record, self.calls[-1].record
        vm = f"VM {self.vm} of {self.vms}, " if self.vms > 1 else ""
        return f"{vm}put {self.number} of {self.count}, records {first} to {last}"
