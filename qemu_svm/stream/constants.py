"""Numbers of QEMU's migration stream and their names.

Source: QEMU ``migration/savevm.c``, ``migration/savevm.h``, ``migration/ram.c``
(5.2 to 10.2).
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

MAGIC = b"QEVM"
VERSION = 3


class RecordType(IntEnum):
    """First byte of every top-level record."""

    EOF = 0x00
    START = 0x01
    PART = 0x02
    END = 0x03
    FULL = 0x04
    SUBSECTION = 0x05
    VMDESCRIPTION = 0x06
    CONFIGURATION = 0x07
    COMMAND = 0x08
    FOOTER = 0x7E


class Command(IntEnum):
    """Commands of a COMMAND record."""

    INVALID = 0
    OPEN_RETURN_PATH = 1
    PING = 2
    POSTCOPY_ADVISE = 3
    POSTCOPY_LISTEN = 4
    POSTCOPY_RUN = 5
    POSTCOPY_RAM_DISCARD = 6
    PACKAGED = 7
    ENABLE_COLO = 8
    POSTCOPY_RESUME = 9
    RECV_BITMAP = 10
    SWITCHOVER_START = 11


class RamFlag(IntFlag):
    """Low bits of the 64-bit word that starts every RAM record."""

    FULL = 0x001
    ZERO = 0x002
    MEM_SIZE = 0x004
    PAGE = 0x008
    EOS = 0x010
    CONTINUE = 0x020
    XBZRLE = 0x040
    HOOK = 0x080
    COMPRESS_PAGE = 0x100
    MULTIFD_FLUSH = 0x200


TARGET_PAGE_SIZE = 4096
"""Bytes of a target page if the stream does not specify them (x86)."""

NULL_POINTER = 0x30
"""Byte for a NULL pointer in an array of pointers."""

VALID_POINTER = 0x31
"""Byte before each element of an auto-allocated array of pointers that is not NULL."""
