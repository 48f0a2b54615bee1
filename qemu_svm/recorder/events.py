"""What both ways of recording report: entries and exits of ioctls, new processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Union

from qemu_svm.recorder.process import Process


@dataclass(frozen=True)
class Entered:
    """A thread has entered an ioctl.

    :param time: in ns, of CLOCK_MONOTONIC.
    :param data: what KVM is given; None if it could not be read.
    :param runs: of KVM_RUN, how many on this descriptor came before.
    """

    pid: int
    tid: int
    time: int
    number: int
    fd: int
    argument: int
    data: bytes | None
    runs: int = 0


@dataclass(frozen=True)
class Left:
    """A thread has left an ioctl.

    :param result: a negative errno if it failed.
    :param data: what KVM has written; of KVM_RUN 8 bytes of ``kvm_run`` from ``exit_reason`` on.
    """

    pid: int
    tid: int
    time: int
    number: int
    fd: int
    argument: int
    result: int
    data: bytes | None


@dataclass(frozen=True)
class Started:
    """A process that is recorded has started this one."""

    pid: int


@dataclass(frozen=True)
class Lost:
    """So many messages were lost since the last of these."""

    count: int


@dataclass(frozen=True)
class Ended:
    """A process has ended.

    :param status: as of waitpid(2); None if that is for its parent.
    """

    pid: int
    status: int | None


Event = Union[Entered, Left, Started, Lost, Ended]


class Source:
    """A way of recording; the processes go on when it ends."""

    def watch(self, process: Process, *, children: bool, late: bool) -> None:
        """Record a process from now on.

        :param children: and those that it starts.
        :param late: it runs already.
        """
        raise NotImplementedError

    def wait(self, seconds: float) -> Iterable[Event]:
        """Wait for events, or for a signal."""
        raise NotImplementedError

    def adopt(self, process: Process) -> None:
        """A process that was started by a watched one is known now."""
        raise NotImplementedError

    def forget(self, pid: int) -> None:
        """A process has ended."""
        raise NotImplementedError

    def runs(self, pid: int) -> dict[int, int]:
        """Return the number of KVM_RUN by descriptor; nothing where they are not counted."""
        raise NotImplementedError

    def stop(self) -> Iterable[Event]:
        """Let the processes go; return what came before."""
        raise NotImplementedError

    def close(self) -> None:
        """Release everything, in whatever state it is."""
        raise NotImplementedError
