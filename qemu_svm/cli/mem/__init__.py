"""``svmstream mem``: guest memory, L1's and L2's.  One module for each verb."""

from __future__ import annotations

import click

from qemu_svm.cli.verbs import Verbs

_VERBS = {
    "Verbs": {
        "read": "Show memory: a hexdump, values, strings, instructions.",
        "translate": "Show every step of a page table walk.",
        "map": "Show what is mapped, with reason or permissions.",
        "search": "Find bytes, a string or a number in memory.",
        "disasm": "Disassemble, by default at the next instruction.",
        "core": "Write an ELF core of L1 or L2 for crash, drgn, gdb.",
        "drgn": "Debug L1 or L2 with drgn, without writing a core.",
    },
}


@click.group(
    cls=Verbs,
    package=__name__,
    verbs=_VERBS,
    examples=("svmstream mem read dump.bin l2v:rip -n 64",),
)
def command() -> None:
    """Read the memory of L1, and of L2 while a vCPU runs it.

    An address is WORLD:ADDRESS. The worlds are l1p (L1-physical memory), l1v (L1's
    virtual memory), l2p (L2-physical memory) and l2v (L2's virtual memory); the
    default is the virtual memory of the level that the vCPU was running. ADDRESS is
    a number or a register such as rip or rsp, optionally followed by +N or -N.

    Exit status: 0 everything was read, 1 with holes, 2 usage, 3 the stream is damaged,
    4 an optional package is missing.
    """
