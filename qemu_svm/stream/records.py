"""The records of a stream, as frozen values.

A stream is a header followed by records without gaps: ``offset`` is that of a
record's first byte (the type byte), ``offset + size`` that of the next record.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DESCRIPTION_HEADER = 5
"""Bytes of a VMDESCRIPTION record before the text: type and length."""


class Kind(StrEnum):
    """Kinds of records, as named in the JSON of ``inspect``."""

    CONFIGURATION = "configuration"
    START = "start"
    PART = "part"
    END = "end"
    FULL = "full"
    COMMAND = "command"
    EOF = "eof"
    DESCRIPTION = "description"
    SKIPPED = "skipped"
    """PARTs that were skipped as one record (RAM data, or very many equal ones), or commands."""
    LOST = "lost"
    """Damage: bytes up to the next plausible record."""
    STATE = "state"
    """The argument of one of KVM's ioctls, in an input that is no stream."""


class LayoutOrigin(StrEnum):
    """Where the layout of device sections comes from, as named in JSON."""

    EMBEDDED = "embedded"
    """The description at the end of the stream."""
    BORROWED = "borrowed"
    """The description of another stream."""
    BUILTIN = "builtin"
    """A built-in layout that fits the section; a guess."""
    DUMP = "dump"
    """The only layout of QEMU's ``-dump-vmstate`` that fits the section; a guess."""
    KVM = "kvm"
    """The structures of KVM's ioctls: the input is no stream."""
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the stream (or a run of them, for ``SKIPPED``).

    ``payload`` and ``payload_size`` are offset and size of the part between header and
    footer.
    ``opaque`` is set if the extent was found by searching for the footer, not
    by reading the content.  ``described`` is the origin of a device section's
    layout.  ``count`` is the number of records that a ``SKIPPED`` one stands for; 0
    if they were not read.
    """

    kind: Kind
    offset: int
    size: int
    name: str | None = None
    section_id: int | None = None
    instance_id: int | None = None
    version_id: int | None = None
    payload: int = 0
    payload_size: int = 0
    opaque: bool = False
    described: LayoutOrigin = LayoutOrigin.NONE
    count: int = 0

    @property
    def end(self) -> int:
        """Offset of the first byte after the record."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Configuration:
    """The CONFIGURATION record: machine type and what the sender negotiated."""

    machine: str
    page_bits: int | None = None
    capabilities: tuple[str, ...] = ()
    uuid: bytes | None = None


@dataclass(frozen=True, slots=True)
class DescriptionRecord:
    """The VMDESCRIPTION record: ``offset`` of its type byte, and the JSON text."""

    offset: int
    text: bytes

    @property
    def payload(self) -> int:
        """Offset of the JSON text."""
        return self.offset + DESCRIPTION_HEADER


@dataclass(frozen=True, slots=True)
class RamBlock:
    """One entry of the RAM block list.  ``used_length`` in bytes."""

    name: str
    used_length: int
    offset: int


@dataclass(frozen=True, slots=True)
class RamPages:
    """Number of page records by kind."""

    normal: int = 0
    zero: int = 0
    xbzrle: int = 0
    compressed: int = 0
