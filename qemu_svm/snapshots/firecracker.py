"""The state file of a Firecracker snapshot; guest memory is in a file of its own.

The file starts with a magic number and the version of the format; the state follows in
``bincode`` with numbers of fixed size: little-endian, before each structure of KVM and each list
its length in eight bytes.  Nothing names the members, so a vCPU is found by the lengths of
structures that follow one another, DEBUGREGS to XCRS, and memory by the sizes of its regions,
which add up to the machine's.

Since v1.15 the state is in ``bitcode`` (:mod:`qemu_svm.snapshots.bitcode`), in which each member of
all vCPUs is a column.  There the vCPUs are found by the lengths of SREGS, and their other members
by columns that lead from one to the next; memory is not read.

The format has no nested state: a guest that was in L2 loses L1's state.

Source: Firecracker v1.10.1, v1.12.1, v1.14.1 (formats 4.0.0, 6.0.0, 8.0.0), v1.15.0 (117150b8c,
9.0.0), v1.16.1 (e527ccfc5, 10.0.0), main at 81b38b9da (11.0.0):
``src/vmm/src/snapshot/mod.rs``, ``persist.rs`` (``MicrovmState``, ``VmInfo``),
``arch/x86_64/vcpu.rs`` (``VcpuState``), ``vstate/memory.rs`` (``GuestMemoryRegionState``);
rust-vmm kvm-bindings ``serialize.rs``, vmm-sys-util ``fam.rs``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress

from qemu_svm.errors import SourceError, StreamError, Truncated
from qemu_svm.kvm import layouts
from qemu_svm.limits import Limits
from qemu_svm.snapshots.assemble import check_aligned
from qemu_svm.snapshots.bitcode import ColumnError, Columns, equal_lengths
from qemu_svm.snapshots.forms import FIRECRACKER
from qemu_svm.snapshots.parts import LEAST, Part, Range, Snapshot, part, unique
from qemu_svm.source.plain import FileSource

MAGIC = (0x0710_1984_8664_0000).to_bytes(8, "little")
_CHAIN = ("DEBUGREGS", "LAPIC", "MP_STATE", "REGS", "SREGS", "VCPU_EVENTS", "XCRS")
"""Structures that follow one another, each after its length."""
_LENGTH = 8
_XSAVE = 4096
_XSAVE2 = 8 + _XSAVE
"""Sizes of ``kvm_xsave``, and of ``kvm_xsave2``, which has its length before it."""
_MOST_LISTS = 64
_MOST_REGIONS = 64
_MOST_VERSION = 32
_MOST_ENTRIES = 4096
_MIB = 1 << 20
_FAR = 1 << 17
"""Bytes of a vCPU's columns, at most."""
_NEAR = 1 << 16
"""Bytes from the start of the state in which the list of regions is."""


def read_state(data: bytes, path: str, memory: str | None, limits: Limits) -> Snapshot:
    """Read a state file.  The caller closes :attr:`Snapshot.file`.

    :param memory: the file with the guest's memory; None if it is not given.
    :raises SourceError: no vCPU is found in it, or the memory cannot be opened.
    """
    if not data.startswith(MAGIC):
        return _read_columns(data, path, memory, limits)
    at, version = _version(data, path)
    places = list(_vcpus(data, at, limits.vcpus))
    if not places:
        raise SourceError(
            f"'{path}' has no vCPU as Firecracker writes it (format {version})",
            hint="read are the formats 4.0.0 to 8.0.0, of Firecracker v1.10 to v1.14",
        )
    found = unique(
        (one for index, place in enumerate(places) for one in _vcpu(data, index, place)), limits
    )
    if memory is None:
        return Snapshot(FIRECRACKER, found)
    ranges = _regions(data, at, places[0], int(version.partition(".")[0] or "0"))
    if not ranges:
        raise SourceError(f"'{path}' has no list of memory regions, so '{memory}' has no addresses")
    try:
        file = FileSource(os.open(memory, os.O_RDONLY | os.O_CLOEXEC), memory)
    except OSError as error:
        raise SourceError(f"cannot open '{memory}': {error.strerror}") from error
    problems: list[StreamError] = []
    whole = max(one.offset + one.size for one in ranges)
    if file.size() < whole:
        problems.append(
            Truncated(
                f"'{memory}' is shorter than the memory regions",
                offset=file.size(),
                section="memory",
                expected=f"{whole} bytes",
                found=f"{file.size()}",
            )
        )
    return Snapshot(FIRECRACKER, found, ranges, file, tuple(problems))


def is_state(head: bytes) -> bool:
    """Return whether a file that starts so is one: in ``bitcode`` a byte precedes the magic."""
    return head.startswith((MAGIC, b"\0" + MAGIC))


def _read_columns(data: bytes, path: str, memory: str | None, limits: Limits) -> Snapshot:
    size = data[1 + len(MAGIC)] if len(data) > 1 + len(MAGIC) else 0
    start = 2 + len(MAGIC)
    text = data[start : start + size] if size <= _MOST_VERSION else b""
    if not text or not all(byte in b"0123456789." for byte in text):
        raise SourceError(f"'{path}' has Firecracker's magic number and no version after it")
    version = text.decode("ascii")
    if memory is not None:
        raise SourceError(
            f"'{path}' is of format {version}: where its memory belongs is not read",
            hint="leave out --memory; read with it are the formats 4.0.0 to 8.0.0 (v1.10 to v1.14)",
        )
    found = _columns(data, start + size, limits.vcpus)
    if not found:
        raise SourceError(
            f"'{path}' has no vCPU as Firecracker writes it (format {version}, bitcode)",
            hint="read are the formats 9.0.0 to 11.0.0, of v1.15 to v1.16; of another one, record "
            "the restore (svmstream record), which has the same structures",
        )
    return Snapshot(FIRECRACKER, unique(found, limits))


def _columns(data: bytes, start: int, most: int) -> list[Part]:
    # SREGS have the rarest length.
    for count in range(1, most + 1):
        wanted = equal_lengths(LEAST["SREGS"], count)
        at = data.find(wanted, start)
        while at >= 0:
            try:
                return _around(data, start, at, count)
            except ColumnError:
                at = data.find(wanted, at + 1)
    return []


def _around(data: bytes, start: int, place: int, count: int) -> list[Part]:
    # Of REGS, whose bytes are never so alike that they are packed, the place is known as well.
    head = equal_lengths(LEAST["REGS"], count) + b"\0"
    regs = place - count * LEAST["REGS"] - len(head)
    if regs < start or data[regs : regs + len(head)] != head:
        raise ColumnError
    chain = Columns(data, regs)
    found = {name: chain.blobs(count, LEAST[name]) for name in ("REGS", "SREGS")}
    found |= {name: chain.blobs(count, LEAST[name]) for name in ("VCPU_EVENTS", "XCRS")}
    found |= _xsave(Columns(data, chain.at), count)
    names = ("DEBUGREGS", "LAPIC", "MP_STATE")
    start = max(start, regs - count * _FAR)

    def middle(columns: Columns) -> dict[str, list[bytes]]:
        return {name: columns.blobs(count, LEAST[name]) for name in names}

    at, more = _before(data, start, regs, equal_lengths(LEAST["DEBUGREGS"], count), middle)
    found |= more
    with suppress(ColumnError):
        head = equal_lengths(layouts.CPUID2.size, count)
        found |= _before(data, start, at, head, lambda columns: _lists(columns, count))[1]
    return [
        part(name, index, one, f"{name.lower()} of vCPU {index}")
        for name, ones in found.items()
        for index, one in enumerate(ones)
    ]


def _before(
    data: bytes,
    start: int,
    end: int,
    head: bytes,
    read: Callable[[Columns], dict[str, list[bytes]]],
) -> tuple[int, dict[str, list[bytes]]]:
    # Columns that begin with ``head`` and end at ``end``.
    at = data.rfind(head, start, end)
    while at >= 0:
        columns = Columns(data, at)
        with suppress(ColumnError):
            found = read(columns)
            if columns.at == end:
                return at, found
        at = data.rfind(head, start, at + len(head) - 1)
    raise ColumnError


def _lists(columns: Columns, count: int) -> dict[str, list[bytes]]:
    # CPUID, and the lists of MSRs: each has a head and entries.
    cpuid = _fams(columns, count, layouts.CPUID_ENTRY.size)
    many = columns.lengths(count)
    if sum(many) > count * _MOST_LISTS:
        raise ColumnError
    lists = iter(_fams(columns, sum(many), layouts.MSR_ENTRY.size))
    msrs = []
    for number in many:
        entries = [layouts.MSR_ENTRY.unpack(entry) for _ in range(number) for entry in next(lists)]
        msrs.append(layouts.pack_msrs([(one["index"], one["data"]) for one in entries]))
    heads = (layouts.CPUID2.pack({"nent": len(one)}) for one in cpuid)
    return {
        "CPUID2": [head + b"".join(one) for head, one in zip(heads, cpuid, strict=True)],
        "MSRS": msrs,
    }


def _fams(columns: Columns, count: int, size: int) -> list[list[bytes]]:
    heads = columns.blobs(count, layouts.MSRS.size)
    many = columns.lengths(count)
    said = [int.from_bytes(head[:4], "little") for head in heads]
    if many != said or sum(many) > count * _MOST_ENTRIES:
        raise ColumnError
    entries = iter(columns.blobs(sum(many), size))
    return [[next(entries) for _ in range(number)] for number in many]


def _xsave(columns: Columns, count: int) -> dict[str, list[bytes]]:
    start = columns.at
    for size in (_XSAVE, _XSAVE2):
        columns.at = start
        with suppress(ColumnError):
            return {"XSAVE": [one[-_XSAVE:] for one in columns.blobs(count, size)]}
    return {}


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + _LENGTH], "little") if at >= 0 else -1


def _version(data: bytes, path: str) -> tuple[int, str]:
    # Where the state begins, and the version before it.
    size = _number(data, len(MAGIC))
    start = len(MAGIC) + _LENGTH
    text = data[start : start + size] if size <= _MOST_VERSION else b""
    if not text or not all(byte in b"0123456789." for byte in text):
        raise SourceError(f"'{path}' has Firecracker's magic number and no version after it")
    return start + size, text.decode("ascii")


def _vcpus(data: bytes, at: int, most: int) -> Iterator[int]:
    # Where the chain of each vCPU begins.  REGS have the rarest length of it.
    before = sum(_LENGTH + LEAST[name] for name in _CHAIN[: _CHAIN.index("REGS")])
    rare = LEAST["REGS"].to_bytes(_LENGTH, "little")
    count = 0
    while count < most:
        at = data.find(rare, at)
        if at < 0:
            return
        if _is_chain(data, at - before):
            yield at - before
            count += 1
        at += 1


def _is_chain(data: bytes, at: int) -> bool:
    for name in _CHAIN:
        if at < 0 or _number(data, at) != LEAST[name]:
            return False
        at += _LENGTH + LEAST[name]
    return at <= len(data)


def _vcpu(data: bytes, index: int, place: int) -> Iterator[Part]:
    at = place
    for name in _CHAIN:
        start = at + _LENGTH
        at = start + LEAST[name]
        yield part(name, index, data[start:at], f"{name.lower()} at {start:#x}")
    size = _number(data, at)
    if size in (_XSAVE, _XSAVE2) and at + _LENGTH + size <= len(data):
        end = at + _LENGTH + size
        yield part("XSAVE", index, data[end - _XSAVE : end], f"xsave at {at:#x}")
    msrs: list[tuple[int, int]] = []
    for _ in range(_MOST_LISTS):
        found = _list_before(data, place, layouts.MSR_ENTRY.size)
        if found is None:
            break
        place, entries = found
        values = (layouts.MSR_ENTRY.unpack(entry) for entry in entries)
        msrs = [(one["index"], one["data"]) for one in values] + msrs
    if msrs:
        yield part("MSRS", index, layouts.pack_msrs(msrs), f"saved_msrs at {place:#x}")
    cpuid = _list_before(data, place - _LENGTH, layouts.CPUID_ENTRY.size)
    if cpuid is not None:
        head = layouts.CPUID2.pack({"nent": len(cpuid[1])})
        yield part("CPUID2", index, head + b"".join(cpuid[1]), f"cpuid at {cpuid[0]:#x}")


def _list_before(data: bytes, end: int, size: int) -> tuple[int, list[bytes]] | None:
    # A list that ends there: its start and entries.  It has a head of 8 bytes and the number of
    # entries, each after its length.
    entries: list[bytes] = []
    at = end
    while len(entries) <= _MOST_ENTRIES:
        head = at - 3 * _LENGTH
        if (
            head >= 0
            and _number(data, head) == layouts.MSRS.size
            and _number(data, at - _LENGTH) == len(entries)
            and int.from_bytes(data[head + 8 : head + 12], "little") == len(entries)
        ):
            return head, entries[::-1]
        at -= _LENGTH + size
        if at < 0 or _number(data, at) != size:
            return None
        entries.append(data[at + _LENGTH : at + _LENGTH + size])
    return None


def _regions(data: bytes, at: int, end: int, version: int) -> tuple[Range, ...]:
    # The list whose sizes add up to the size of the machine, in MiB at the start of the state.
    whole, end = _number(data, at) * _MIB, min(end, at + _NEAR)
    for count in range(1, _MOST_REGIONS):
        head = count.to_bytes(_LENGTH, "little") + bytes(_LENGTH)  # the first is at address 0
        place = data.find(head, at, end)
        while place >= 0:
            for extra in _EXTRAS.get(version, ("",)):
                found = _region_list(data, place + _LENGTH, count, extra)
                if sum(one.size for one in found) == whole and whole:
                    check_aligned(tuple((one.address, one.size) for one in found), "regions")
                    return found
            place = data.find(head, place + 1, end)
    return ()


_EXTRAS = {4: ("offset",), 8: ("type", "")}
"""What follows address and size of a region, by the version of the format: its offset in the file
(v1.10), its type and a list of flags (v1.14, but not v1.13), nothing."""
_TYPES = 2


def _region_list(data: bytes, at: int, count: int, extra: str) -> tuple[Range, ...]:
    found: list[Range] = []
    offset = 0
    for _ in range(count):
        address, size = _number(data, at), _number(data, at + _LENGTH)
        at += 2 * _LENGTH
        place = offset
        if extra == "offset":
            place = _number(data, at)
            at += _LENGTH
        elif extra == "type":
            flags = data[at + 4 + _LENGTH :][: min(_number(data, at + 4), len(data))]
            if int.from_bytes(data[at : at + 4], "little") >= _TYPES or flags.strip(b"\0\1"):
                return ()
            at += 4 + _LENGTH + len(flags)
        if at > len(data):
            return ()
        found.append(Range(address, size, place))
        offset += size
    return tuple(found)
