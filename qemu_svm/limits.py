"""How much a stranger's input may ask of us.

Every limit is an argument with a default that leaves real streams far below
it: the description of a small guest is about 100 KiB and a guest with 500
vCPUs needs some 5 MiB; the largest real section has a few thousand values.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds for one input.

    :param description_bytes: size of the JSON description (bytes).
    :param description_depth: nesting of structures in the description.
    :param section_values: values decoded from one section.
    :param records: records that are kept one by one; PARTs above it are folded.
    :param recoveries: how often reading goes on behind damage.
    :param window_bytes: what the decompressors of the input may keep of their output
        to refer back to.  Of the usual commands only ``zstd --long`` and
        ``zstd --ultra -20`` (to 22) ask for more.
    :param spool_bytes: decompressed or piped input kept in a temporary file.
    :param ram_walk_bytes: RAM data walked record by record although nobody
        asked for it; above this, it is stepped over as one record.
    """

    description_bytes: int = 16 * MIB
    description_depth: int = 64
    section_values: int = 1 << 18
    records: int = 1 << 17
    recoveries: int = 64
    window_bytes: int = 64 * MIB
    spool_bytes: int = 256 * GIB
    ram_walk_bytes: int = 4 * MIB


DEFAULT = Limits()
