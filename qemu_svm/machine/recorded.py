"""What a recording has of a vCPU beyond its state: the ioctls of one put, as they were."""

from __future__ import annotations

from dataclasses import dataclass, field

CAP_EXCEPTION_PAYLOAD, CAP_TRIPLE_FAULT = 164, 218
"""Numbers of the capabilities without which KVM refuses flags of KVM_SET_VCPU_EVENTS (Linux
``include/uapi/linux/kvm.h``)."""


def kind_of(ioctl: str) -> str:
    """Return what an ioctl sets, the same for ioctls that set the same.

    >>> kind_of("SET_SREGS2")
    'SREGS'
    """
    name = ioctl.removeprefix("SET_")
    return "SREGS" if name == "SREGS2" else name


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
    :param before: ioctls that give a new vCPU the state that this one had before the put, as far
        as the recording shows it: those of earlier puts, or what was read after it ran.
    :param ran_at: record of the last KVM_RUN before the put, or of what shows that it ran; 0 if
        nothing does.
    :param unread: structures that were not read between that run and the put, so that what the
        vCPU had in them is not known.
    :param ran: whether the vCPU ran afterwards; None in a recording without any KVM_RUN.
    :param capabilities: numbers of those that were enabled for the VM.
    :param irqchip: whether the VM has KVM's interrupt controllers; None if it does not show.
    :param lost: calls that the recorder could not keep, before the end of the put.
    :param vendor: of the host's processor: ``amd``, ``intel`` or ``other``.
    :param mce: MCG_CAP that KVM_X86_SETUP_MCE set, without which KVM refuses MSRs; 0 if none.
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
    before: tuple[Given, ...] = ()
    ran_at: int = 0
    unread: tuple[str, ...] = ()
    vendor: str = "amd"
    mce: int = 0

    @property
    def lacking(self) -> tuple[str, ...]:
        """Return those of :attr:`unread` that neither the put sets."""
        mine = {kind_of(call.name) for call in self.calls}
        return tuple(one for one in self.unread if one not in mine)

    @property
    def failed(self) -> tuple[Given, ...]:
        """Return the calls that failed, and were not made again with success."""
        good = {kind_of(call.name): call.record for call in self.calls if call.errno is None}
        return tuple(
            call
            for call in self.calls
            if call.errno is not None and good.get(kind_of(call.name), 0) < call.record
        )

    @property
    def carried(self) -> str:
        """What the vCPU had before the put, in words; empty if it was new."""
        if not self.ran_at:
            return ""
        since = [call.record for call in self.before if call.record >= self.ran_at]
        words = f"the vCPU ran at record {self.ran_at}, and its state was not read since"
        if since:
            words = (
                f"the vCPU ran at record {self.ran_at}; its state is that of records "
                f"{min(since)} to {max(since)}"
            )
        lacking = ", ".join(self.lacking)
        return f"{words}; not known: {lacking}" if lacking else words

    @property
    def label(self) -> str:
        """Which put it is, in words."""
        first, last = self.calls[0].record, self.calls[-1].record
        vm = f"VM {self.vm} of {self.vms}, " if self.vms > 1 else ""
        return f"{vm}put {self.number} of {self.count}, records {first} to {last}"
