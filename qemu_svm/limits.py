"""Resource limits for untrusted input.

Every limit is an argument, and its default is far above the needs of real input: the
description of a small guest has about 100 KiB, that of a guest with 500 vCPUs some
5 MiB; the largest real section has a few thousand values.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, fields, replace

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for one input: a migration stream, a log of ioctls, or a log of svmtrace.

    :param description_bytes: size of the JSON description (bytes).
    :param description_items: objects, lists and commas in the description; that of a
        small guest has 10000.  Each takes some 100 bytes of memory.
    :param description_depth: nesting of structures in the description.
    :param section_values: values decoded from one section; four numbers of an array count as one.
    :param section_bytes: size of a section that is decoded (bytes); of larger ones the bytes
        are compared.
    :param records: records kept one by one; further PARTs and commands are folded, and of
        one command all after the first 1024.
        Also the number of sections that a stream may start.
    :param vcpus: vCPUs that are decoded, or distinguished in a log of ioctls; QEMU
        11.1 supports at most 4096.
    :param recoveries: damaged places after which reading resumes.
    :param window_bytes: window of the input's compression (bytes of output that
        compressed data may refer back to).  The default is that of the command ``zstd``;
        only ``zstd --long=28`` and more need a larger one.
    :param spool_bytes: decompressed or piped input kept in a temporary file.
    :param ram_walk_bytes: RAM data that is walked record by record without being
        requested; more is skipped as one record.
    :param page_table_leaves: pages of an address space that are listed or searched.
    :param core_loads: program headers of a core.
    :param snapshot_bytes: of a file with the state of vCPUs that is no stream: JSON, raw
        structures, another VMM's snapshot (without the guest's memory).
    :param recorded_puts: of each vCPU of a recording that are kept as state: the first and the
        last ones.
    :param trace_line_bytes: of a line in a log of ioctls; the middle of a longer line
        is left out.
    :param trace_ioctls: ioctls kept, after repeated ones are counted as one; each KiB of
        their data counts as a further one.
    :param trace_puts: calls of KVM_SET_NESTED_STATE that are judged.
    :param trace_pending: system calls of different threads in progress at once.
    :param trace_names: different ioctls of the VM, the system and devices.
    :param vmruns_entries: VMRUNs in a log of svmtrace; some 35 bytes of memory each.
    :param vmruns_vmcbs: addresses of VMCBs.
    :param vmruns_pages: pages of 4 KiB that the log may refer back to.
    """

    description_bytes: int = 16 * MIB
    description_items: int = 1 << 20
    description_depth: int = 64
    section_values: int = 1 << 18
    section_bytes: int = 32 * MIB
    records: int = 1 << 16
    vcpus: int = 8192
    recoveries: int = 64
    window_bytes: int = 128 * MIB
    spool_bytes: int = 256 * GIB
    ram_walk_bytes: int = 4 * MIB
    page_table_leaves: int = 1 << 24
    core_loads: int = 1 << 17
    snapshot_bytes: int = 64 * MIB
    recorded_puts: int = 64
    trace_line_bytes: int = 64 * KIB
    trace_ioctls: int = 100_000
    trace_puts: int = 10_000
    trace_pending: int = 1 << 16
    trace_names: int = 512
    vmruns_entries: int = 1 << 21
    vmruns_vmcbs: int = 1 << 14
    vmruns_pages: int = 1 << 14


DEFAULT = Limits()


_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024 * GIB}


def parse_size(text: str) -> int:
    """Return the number that a text such as ``100000``, ``0x1000``, ``64M`` or ``1.5GiB`` means.

    :raises ValueError: it means none.
    """
    with suppress(ValueError):
        return int(text, 0)
    digits = text.upper().removesuffix("IB").removesuffix("B")
    unit = digits[-1:] if digits[-1:] in ("K", "M", "G", "T") else ""
    digits = digits.removesuffix(unit)
    try:
        number = int(digits, 0) if digits.startswith("0X") else float(digits)
        return int(number * _UNITS[unit])
    except (ValueError, OverflowError):
        raise ValueError(f"invalid size '{text}' (expected e.g. 64M)") from None


def changed(limits: Limits, assignments: Iterable[str]) -> Limits:
    """Return the limits with some of them changed.

    >>> changed(DEFAULT, ["description_bytes=100M"]).description_bytes
    104857600

    :param assignments: ``NAME=VALUE``; a value may end in K, M, G or T (of 1024).
    :raises ValueError: no such limit, or not a number.
    """
    names = {field.name for field in fields(limits)}
    found: dict[str, int] = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in names:
            from difflib import get_close_matches

            known = get_close_matches(name, names) or sorted(names)
            raise ValueError(f"unknown limit '{name}'; known are {', '.join(known)}")
        try:
            found[name] = parse_size(text)
        except ValueError:
            raise ValueError(f"invalid number '{text}' (expected e.g. 100000 or 64M)") from None
        if found[name] < 0:
            raise ValueError(f"a limit cannot be negative: '{assignment}'")
    return replace(limits, **found)
