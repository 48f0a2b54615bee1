"""How much of a stranger's log is kept in memory.

A log may be any size: lines are read one after the other, repeated ioctls are
kept as one with a count, and repeated cycles of phases likewise.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TraceLimits:
    """Bounds for one log.

    :param line_bytes: what is kept of a line; the rest of it is stepped over.
    :param steps: ioctls kept, after repetitions are counted as one.
    :param puts: KVM_SET_NESTED_STATE that are judged.
    :param vcpus: vCPUs kept apart.
    :param pending: system calls of different threads under way at once.
    :param names: different ioctls of the VM and the system that are counted.
    """

    line_bytes: int = 64 * 1024
    steps: int = 100_000
    puts: int = 10_000
    vcpus: int = 4096
    pending: int = 65_536
    names: int = 512


DEFAULT = TraceLimits()
