"""Layout of every fixed structure of the stream, for parsing and building.

All integers are big-endian.  A *counted string* is a length byte and that many
bytes.  Names of numbers are in :mod:`qemu_svm.stream.constants`.

Source: QEMU ``migration/savevm.c`` (``qemu_savevm_state_header``,
``save_section_header``, ``save_section_footer``, ``vmstate_configuration``),
``migration/vmstate.c`` (``vmstate_subsection_save``), ``migration/ram.c``
(``ram_save_setup``), 5.2 to 10.2.
"""

from __future__ import annotations

from construct import (
    Byte,
    Bytes,
    Const,
    GreedyBytes,
    Int16ub,
    Int32ub,
    Int64ub,
    Prefixed,
    PrefixedArray,
    Struct,
    Switch,
    this,
)

from qemu_svm.stream.constants import MAGIC

CountedString = Prefixed(Byte, GreedyBytes)

FileHeader = Struct("magic" / Const(MAGIC), "version" / Int32ub)

# The type byte before each of these has been read already.

SectionHeader = Struct(
    "section_id" / Int32ub,
    "name" / CountedString,
    "instance_id" / Int32ub,
    "version_id" / Int32ub,
)
"""After SECTION_START and SECTION_FULL."""

SectionReference = Struct("section_id" / Int32ub)
"""After SECTION_PART, SECTION_END and SECTION_FOOTER."""

CommandRecord = Struct("command" / Int16ub, "payload" / Prefixed(Int16ub, GreedyBytes))

DescriptionHeader = Struct("length" / Int32ub)

Subsection = Struct("name" / CountedString, "version" / Int32ub)
"""After the SUBSECTION byte, inside a vmstate payload."""

ConfigurationHeader = Struct("machine" / Prefixed(Int32ub, GreedyBytes))

ConfigurationSubsection = Struct(
    "name" / CountedString,
    "version" / Int32ub,
    "value"
    / Switch(
        this.name,
        {
            b"configuration/target-page-bits": Int32ub,
            b"configuration/capabilities": PrefixedArray(Int32ub, CountedString),
            b"configuration/uuid": Bytes(16),
        },
        default=None,
    ),
)
"""After the SUBSECTION byte that follows the configuration's machine name."""

RamBlock = Struct("name" / CountedString, "used_length" / Int64ub)
"""One entry of the block list after MEM_SIZE."""
