"""What a difference between two streams means: whether a restore can depend on it.

By path and group, never by words.  The order of :class:`Weight` is that in which a reader
who wants to know why one stream is restored and another is not should look.
"""

from __future__ import annotations

import re
from enum import StrEnum

from qemu_svm.findings.diff import (
    CONFIGURATION,
    DEVICES,
    RAM_BLOCKS,
    SECTIONS,
    Comparison,
    Difference,
)


class Weight(StrEnum):
    """How much may depend on a difference, most first."""

    DESTINATION = "destination"
    """The destination must be made for it: machine, capabilities, RAM, sections, versions."""
    NESTED = "nested"
    """KVM checks it, or L1 or L2 would run differently: the nested state."""
    MODE = "mode"
    """How the vCPU works: control registers, MSRs, descriptors, interrupt state."""
    DEVICE = "device"
    """State of a device."""
    PROGRESS = "progress"
    """How far the guest was: instruction pointers, general registers, counters, flags."""


_GENERAL = "|".join(
    ("r[abcd]x", "r[sd]i", "r[sb]p", "r8", "r9", r"r1\d", "rip", "rflags", "dr6", "cr2")
)
_PROGRESS = re.compile(
    rf"vcpu\d+\.(?:registers|nested\.l1_save)\.(?:{_GENERAL}|tsc|mxcsr)(?!\w)"
    r"|vcpu\d+\.nested\.control\.(?:exit_|next_rip|insn_|clean|tsc_offset|bus_lock_counter)"
    r"|vcpu\d+\.nested\.l1_save\.(?:br_|last_excp_|instr_retired)"
    r"|vcpu\d+\.(?:registers|nested\.l1_save)\.(?:dr[0-3])(?!\w)"
)


def weight_of(one: Difference) -> Weight:
    """Return what a difference means."""
    if one.group in (CONFIGURATION, RAM_BLOCKS, SECTIONS):
        return Weight.DESTINATION
    if _PROGRESS.match(one.path):
        return Weight.PROGRESS
    if one.group == DEVICES:
        return Weight.DEVICE
    return Weight.NESTED if one.group.endswith(" nested") else Weight.MODE


def ranked(found: Comparison) -> list[tuple[Weight, Difference]]:
    """Return the differences that count, by weight; those of one weight in stream order."""
    order = list(Weight)
    weighed = [(weight_of(one), one) for one in found.counting]
    return sorted(weighed, key=lambda pair: order.index(pair[0]))
