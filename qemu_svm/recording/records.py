"""The contents of a recording: typed records, the same for both of its forms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from qemu_svm.kvm import numbers
from qemu_svm.kvm.numbers import Level

RUN = 0xAE80
"""The number of KVM_RUN."""


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a recording as a whole; empty or 0 where it does not say.

    :param vendor: of the host's processor: ``amd``, ``intel`` or ``other``.
    :param pid: of the process that was recorded.
    :param release: of the host's kernel (``uname -r``).
    :param exe: name of the program.
    :param recorder: ``bpf``, ``ptrace``, ``preload``, or another program's name.
    :param realtime: nanoseconds since 1970 when recording began.
    :param monotonic: the same moment on the clock of the records.
    :param redacted: what is a host's was masked.
    :param attached: the process ran when recording began.
    """

    vendor: str = "amd"
    pid: int = 0
    release: str = ""
    exe: str = ""
    recorder: str = ""
    realtime: int = 0
    monotonic: int = 0
    redacted: bool = False
    attached: bool = False


class Ioctl(NamedTuple):
    """One call; a named tuple, because a recording has millions of them.

    :param number: of the record, from 1; in JSON lines the line.
    :param time: when it was entered (nanoseconds).
    :param level: kind of the descriptor; None if it is not known.
    :param index: of the vCPU, or number of the VM; None if it is not known.
    :param nr: the ioctl's number, 32 bits.
    :param ret: the result; an errno is negative.
    :param given: the bytes that the kernel was given.
    :param returned: the bytes that it returned.
    :param arg: the third argument, where it is a number; an address otherwise, or 0.
    :param runs: of KVM_RUN: how often the vCPU ran before, None if that was not recorded.
    :param duration: nanoseconds until it returned.
    :param missing: its argument could not be read, as a whole or in part.
    """

    number: int
    time: int
    tid: int
    fd: int
    level: Level | None
    index: int | None  # type: ignore[assignment]  # tuple's method is not used
    nr: int
    ret: int
    given: bytes = b""
    returned: bytes = b""
    arg: int = 0
    runs: int | None = None
    duration: int = 0
    missing: bool = False

    @property
    def name(self) -> str:
        """``KVM_SET_SREGS``, or the parts of an unknown number."""
        return numbers.name_of(self.nr)

    @property
    def exit_reason(self) -> int | None:
        """Of KVM_RUN: how it ended, None if the recording does not have it."""
        if self.nr != RUN or len(self.returned) < 4:
            return None
        return int.from_bytes(self.returned[:4], "little")


@dataclass(frozen=True, slots=True)
class Lost:
    """Calls that the recorder could not keep."""

    number: int
    time: int
    count: int


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a file descriptor is: the text of its link in /proc/PID/fd."""

    number: int
    time: int
    fd: int
    text: str

    @property
    def kind(self) -> tuple[Level, int] | None:
        """Its level, and the vCPU's index (0 for the others); None if it is not KVM's."""
        return level_of_link(self.text)


@dataclass(frozen=True, slots=True)
class Attached:
    """Recording began in a running process, which had so many descriptors of KVM."""

    number: int
    time: int
    count: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Guest memory at a guest-physical address.

    :param fd: the VM's descriptor, -1 if it is not known.
    """

    number: int
    time: int
    fd: int
    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Runs:
    """How often a vCPU ran in the whole recording."""

    fd: int
    index: int
    runs: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The last record of a complete recording.

    :param reason: ``exited``, ``stopped``, ``limit`` or ``unknown``.
    """

    number: int
    time: int
    reason: str
    runs: tuple[Runs, ...] = ()


Record = Ioctl | Lost | Descriptor | Attached | Memory | Ended


def level_of_link(text: str) -> tuple[Level, int] | None:
    """Return the level of a descriptor by its link, and the vCPU's index; None if not KVM's.

    >>> level_of_link("anon_inode:kvm-vcpu:3")
    (<Level.VCPU: 'vcpu'>, 3)
    """
    name = text.removeprefix("anon_inode:").strip("[]")
    if name == "/dev/kvm":
        return Level.SYSTEM, 0
    if name == "kvm-vm":
        return Level.VM, 0
    if name.startswith("kvm-vcpu:"):
        index = name.removeprefix("kvm-vcpu:")
        known = index.isascii() and index.isdigit() and len(index) < 6
        return (Level.VCPU, int(index)) if known else None
    return (Level.DEVICE, 0) if name.startswith("kvm-") and "stats" not in name else None


def ioctls(records: Iterable[Record]) -> Iterator[Ioctl]:
    """Yield the calls alone."""
    return (one for one in records if isinstance(one, Ioctl))
