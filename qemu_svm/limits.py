"""How much a stranger's input may ask of us.

Every limit is an argument with a default that leaves real streams far below
it: the description of a small guest is about 100 KiB and a guest with 500
vCPUs needs some 5 MiB; the largest real section has a few thousand values.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds for one input.

    :param description_bytes: size of the JSON description (bytes).
    :param description_items: objects, lists and commas in it; a small guest's has
        10000, and what is read takes some 100 bytes for each.
    :param description_depth: nesting of structures in the description.
    :param section_values: values decoded from one section.
    :param section_bytes: of a section that is decoded or compared.
    :param records: records that are kept one by one: PARTs and commands above it
        are folded.  As many sections may start, and no more.
    :param vcpus: that are decoded; QEMU 11.1 makes 4096 at most.
    :param recoveries: how often reading goes on behind damage.
    :param window_bytes: what the decompressors of the input may keep of their output
        to refer back to.  Of the usual commands only ``zstd --long`` and
        ``zstd --ultra -20`` (to 22) ask for more.
    :param spool_bytes: decompressed or piped input kept in a temporary file.
    :param ram_walk_bytes: RAM data walked record by record although nobody
        asked for it; above this, it is stepped over as one record.
    """

    description_bytes: int = 16 * MIB
    description_items: int = 1 << 20
    description_depth: int = 64
    section_values: int = 1 << 18
    section_bytes: int = 256 * MIB
    records: int = 1 << 16
    vcpus: int = 8192
    recoveries: int = 64
    window_bytes: int = 64 * MIB
    spool_bytes: int = 256 * GIB
    ram_walk_bytes: int = 4 * MIB


DEFAULT = Limits()


_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB}


def changed(limits: Limits, assignments: Iterable[str]) -> Limits:
    """Limits with some of them set anew.

    >>> changed(DEFAULT, ["description_bytes=100M"]).description_bytes
    104857600

    :param assignments: ``NAME=VALUE``; a value may end in K, M or G (of 1024).
    :raises ValueError: no such limit, or not a number.
    """
    names = {field.name for field in fields(limits)}
    found: dict[str, int] = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in names:
            raise ValueError(f"there is no limit '{name}'; there are {', '.join(sorted(names))}")
        unit = text[-1:].upper() if text[-1:].upper() in ("K", "M", "G") else ""
        try:
            found[name] = int(text[: len(text) - len(unit)], 0) * _UNITS[unit]
        except ValueError:
            raise ValueError(f"'{text}' is not a number such as 100000 or 64M") from None
        if found[name] < 0:
            raise ValueError(f"a limit cannot be negative: '{assignment}'")
    return replace(limits, **found)
