"""The guests by name: source, values, and the state in which they are captured."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from qemu_svm.errors import PathError
from qemu_svm.lab.guests.values import ADDRESSES, CONSTANTS, L1, Mode


@dataclass(frozen=True, slots=True)
class GuestState:
    """The wanted state of a captured vCPU.

    :param gif: None if releases of KVM differ.
    """

    guest_mode: bool = True
    gif: bool | None = True
    smm: bool = False
    run_pending: bool = False


_L2 = GuestState()
_L1 = GuestState(guest_mode=False)


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest: an L1 of about a kilobyte with the L2 that it runs.

    :param about: one line.
    :param source: file name of its assembly, in the directory of this module.
    :param mode: the mode that L2 runs in.
    :param symbols: values that differ from those of ``values.CONSTANTS``.
    :param vcpus: the wanted state of each vCPU.
    :param counters: the counters that change while it runs, by their names in
        :class:`qemu_svm.lab.vm.Counts`.
    :param l1_rsp: L1's stack pointer on the vCPU that runs L2.
    :param steady: it is in that state nearly always; otherwise a capture may need many tries.
    :param memory: L1's memory in MiB.
    """

    name: str
    about: str
    source: str = "nested.s"
    mode: Mode = Mode.LONG
    nested_paging: bool = False
    symbols: Mapping[str, int] = field(default_factory=dict)
    vcpus: tuple[GuestState, ...] = (_L2,)
    counters: tuple[str, ...] = ("exits", "l2")
    l1_rsp: int = L1["rsp"]
    steady: bool = True
    memory: int = 32

    def constant(self, name: str) -> int:
        """Return this guest's value of one of ``values.CONSTANTS``."""
        return self.symbols.get(name, CONSTANTS[name])


_PENDING = GuestState(run_pending=True)
_BOTH = ("exits", "l1", "l2")

_ALL = (
    Guest("nested", "L2 with its own page tables, no nested paging"),
    Guest("nested-npt", "L2 with nested paging", nested_paging=True),
    Guest(
        "npt-mmio",
        "L2 with nested paging that touches an emulated device",
        source="mmio.s",
        nested_paging=True,
    ),
    Guest("pae", "L2 in PAE paging", mode=Mode.PAE),
    Guest("pae-npt", "L2 in PAE paging, nested paging", mode=Mode.PAE, nested_paging=True),
    Guest("protected", "L2 in 32-bit protected mode without paging", mode=Mode.PROTECTED),
    Guest("l1", "L1 itself, between two runs of L2", source="l1.s", vcpus=(_L1,), counters=_BOTH),
    Guest(
        "gif-clear",
        "L1 itself with GIF clear, after a #VMEXIT",
        source="l1.s",
        symbols={"GIF": 0},
        vcpus=(GuestState(guest_mode=False, gif=False),),
        counters=_BOTH,
    ),
    Guest(
        "l2-gif-clear",
        "L2 with GIF clear, by its own CLGI",
        symbols={"GIF": 0},
        vcpus=(GuestState(gif=False),),
    ),
    Guest(
        "run-pending",
        "many short runs of L2: VMRUN done, L2 not entered",
        source="run-pending.s",
        vcpus=(_PENDING,),
        steady=False,
    ),
    Guest(
        "inject",
        "an interrupt to be injected into L2 is pending",
        source="inject.s",
        vcpus=(_PENDING,),
        counters=("exits", "l2", "events"),
        steady=False,
    ),
    Guest(
        "msrs",
        "L1 intercepts some of L2's MSR accesses",
        source="msrs.s",
        symbols={"INTERCEPTS3": 1 << 28 | 1 << 31},  # MSR_PROT, SHUTDOWN
    ),
    Guest(
        "smm",
        "system management mode, entered from L2",
        source="smm.s",
        # An SMI in L2 makes KVM leave L2, which clears GIF in 7.2 and not in 6.12.
        vcpus=(GuestState(guest_mode=False, gif=None, smm=True),),
        counters=("exits", "l2", "smm"),
    ),
    Guest(
        "smp",
        "two processors, the first in L1, the second in L2",
        source="smp.s",
        vcpus=(_L1, _L2),
        counters=_BOTH,
        l1_rsp=ADDRESSES["AP_RSP"],
    ),
)

GUESTS: Mapping[str, Guest] = MappingProxyType({guest.name: guest for guest in _ALL})
"""All guests but :data:`LINUX` and :data:`LINUX_IN_LINUX`, by name."""

LINUX = Guest(
    "linux",
    "Linux 6.1 with KVM and a QEMU as L1, an L2 in real mode (takes minutes)",
    source="linux.s",
    memory=512,
)
"""Started by :mod:`qemu_svm.lab.linux`, unlike the others; its L2 counts in a register."""


LINUX_IN_LINUX = Guest(
    "linux-in-linux",
    "Linux 6.1 as L1 and the same as L2, both with KASLR (takes ten minutes)",
    source="linux.s",
    memory=768,
)
"""Started by :mod:`qemu_svm.lab.linux`; its L2 counts in a shell."""


def find(name: str) -> Guest:
    """Return a guest by name.

    :raises PathError: there is no guest of that name.
    """
    known = {**GUESTS, LINUX.name: LINUX, LINUX_IN_LINUX.name: LINUX_IN_LINUX}
    if name in known:
        return known[name]
    raise PathError(f"unknown guest '{name}'", near=difflib.get_close_matches(name, known))
