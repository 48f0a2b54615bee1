"""Layout of a log of ``plugins/svmtrace``, version 1.

A header, then records.  All integers are little-endian.  Every record begins with
its size and ends with the CRC-32 (zlib's) of all bytes before it, so a log that was
cut is readable up to its last complete record.

A record with a page contains a VMCB (4096 bytes) as runs of bytes: in full (one run),
or, with ``DELTA``, the bytes that changed since the last page in the log with the same
physical address.  At most ``pages`` addresses are remembered; one more, and all are
forgotten.

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
the emulator started.  In the end record, ``rax`` is the reason, see :data:`ENDS`."""

PAGE = Struct("address" / Int64ul, "entry" / Int64ul, "runs" / Int16ul)
"""Follows the head if the record has a page: its physical address, the number of the
VMRUN that it belongs to (0 if it is that itself), how many runs follow."""

RUN = Struct("offset" / Int16ul, "length" / Int16ul)
"""Before the bytes of each run."""

CHECKSUM = Int32ul


class RecordKind(IntEnum):
    """Kinds of records; instructions by the third byte of their opcode."""

    EXIT = 1
    """The instruction after VMRUN: the VMCB is as #VMEXIT left it."""
    VMCB12 = 2
    """The VMCB that a guest's VMRUN pointed at; RAX and RIP are that VMRUN's."""
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
    """Return the name of a kind of record, or its number."""
    return next((one.name for one in RecordKind if one == kind), f"{kind:#x}")


class Flag(IntFlag):
    """Flags of a record."""

    IN_GUEST = 1
    """Executed below L0."""
    PAGE = 2
    DELTA = 4
    UNREADABLE = 8
    """The VMCB could not be read."""
    UNPAIRED = 16
    """The matching exit or entry is missing: the machine's state was replaced
    meanwhile."""


ENDS = {1: "the emulator ended", 2: "the size limit was reached"}
