"""Layout of a log of ``plugins/svmtrace``, version 1.

A header, then records.  All integers are little-endian.  Every record tells its
whole size first and ends in the CRC-32 (as zlib's) of what stands before, so a log
that was cut is readable up to its last whole record.

A record with a page carries a VMCB (4096 bytes) as runs of bytes: in full (one run
of everything), or, with ``DELTA``, what changed since the last page that the log
holds for the same physical address.  At most ``pages`` addresses are remembered;
when one more comes, all are forgotten.

The writer is ``plugins/svmtrace/log.c``.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul, Struct

MAGIC = b"SVMTRACE"
VERSION = 1

HEADER = Struct(
    "magic" / Const(MAGIC),
    "version" / Int16ul,
    "size" / Int16ul,
    "api" / Int16ul,
    "vcpus" / Int16ul,
    "pages" / Int32ul,
    "page_size" / Int32ul,
    "reserved" / Bytes(4),
    "crc" / Int32ul,
)
"""``api``: the plugin interface that was used.  ``vcpus``: of the emulated host."""

RECORD = Struct(
    "size" / Int32ul,
    "kind" / Int8ul,
    "flags" / Int8ul,
    "vcpu" / Int16ul,
    "number" / Int64ul,
    "time" / Int64ul,
    "rip" / Int64ul,
    "rax" / Int64ul,
)
"""Head of every record.  ``number`` counts from 1, ``time`` is in nanoseconds since
the emulator started.  In the record at the end, ``rax`` tells why it ended."""

PAGE = Struct("address" / Int64ul, "entry" / Int64ul, "runs" / Int16ul)
"""Follows the head if the record has a page: its physical address, the number of the
VMRUN that it belongs to (0 if it is that itself), how many runs follow."""

RUN = Struct("offset" / Int16ul, "length" / Int16ul)
"""Before the bytes of each run."""

CHECKSUM = Int32ul


class Kind(IntEnum):
    """What a record tells; the instructions by the third byte of their opcode."""

    EXIT = 1
    """The instruction behind VMRUN: the VMCB is as #VMEXIT left it."""
    VMCB12 = 2
    """What a guest's VMRUN pointed at; RAX and RIP are that VMRUN's."""
    END = 3
    VMRUN = 0xD8
    VMMCALL = 0xD9
    VMLOAD = 0xDA
    VMSAVE = 0xDB
    STGI = 0xDC
    CLGI = 0xDD
    SKINIT = 0xDE
    INVLPGA = 0xDF


def kind_name(kind: int) -> str:
    """Name of a kind, or its number."""
    return next((one.name for one in Kind if one == kind), f"{kind:#x}")


class Flag(IntFlag):
    """How it was met."""

    IN_GUEST = 1
    """Executed below L0."""
    PAGE = 2
    DELTA = 4
    UNREADABLE = 8
    """The VMCB could not be read."""
    UNPAIRED = 16
    """The other half of this entry or exit was not seen: the machine's state was
    replaced meanwhile."""


ENDS = {1: "the emulator ended", 2: "the size limit was reached"}
