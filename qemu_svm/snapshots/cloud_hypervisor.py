"""A snapshot of Cloud Hypervisor: a folder with ``state.json`` and ``memory-ranges``.

``state.json`` is a tree: each node has ``snapshots`` (its children by name) and
``snapshot_data.state``, a text that is JSON again.  ``cpu-manager`` has a child for each
vCPU, by its number, ``memory-manager`` the list of memory ranges, whose content
``memory-ranges`` has in the order of the list.  KVM's structures are arrays of bytes.

Source: Cloud Hypervisor v49.0, v53.0 and main at ae44c297: ``vm-migration/src/lib.rs``
(``Snapshot``), ``vmm/src/cpu.rs``, ``vmm/src/memory_manager.rs``
(``MemoryManagerSnapshotData``, ``send``), ``hypervisor/src/kvm/x86_64/mod.rs``
(``VcpuKvmState``); rust-vmm kvm-bindings 0.14.1 (``serialize.rs``, ``x86_64/nested.rs``).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qemu_svm.errors import SourceError, StreamError, Truncated
from qemu_svm.kvm import layouts
from qemu_svm.limits import Limits
from qemu_svm.snapshots.assemble import check_aligned
from qemu_svm.snapshots.forms import CLOUD_HYPERVISOR
from qemu_svm.snapshots.parts import Part, Range, Snapshot, part, unique
from qemu_svm.snapshots.text import parse_json
from qemu_svm.source.plain import FileSource

STATE = "state.json"
MEMORY = "memory-ranges"
_CPUS, _RAM = "cpu-manager", "memory-manager"
_BYTES = {
    "regs": "REGS",
    "sregs": "SREGS",
    "vcpu_events": "VCPU_EVENTS",
    "xcrs": "XCRS",
    "mp_state": "MP_STATE",
    "nested_state": "NESTED_STATE",
}
"""Members that are arrays of bytes."""
_MOST_RANGES = 4096

Json = Mapping[str, Any]


def is_folder(path: str) -> bool:
    """Whether it is a folder with such a snapshot."""
    return os.path.isdir(path) and os.path.lexists(os.path.join(path, STATE))


def read_folder(path: str, limits: Limits) -> Snapshot:
    """Read a snapshot.  The caller closes :attr:`Snapshot.file`.

    :raises SourceError: a file cannot be opened, is a symbolic link, or is not what this VMM
        writes.
    :raises LimitExceeded: ``state.json`` is larger than the limit.
    """
    with _opened(path, STATE) as state:
        text = state.read_at(0, min(state.size(), limits.snapshot_bytes + 1))
    where = os.path.join(path, STATE)
    tree = parse_json(text, where, limits)
    parts = unique(_vcpus(tree, where, limits), limits)
    ranges = tuple(_ranges(tree, where, limits))
    problems: list[StreamError] = []
    if not ranges or not os.path.lexists(os.path.join(path, MEMORY)):
        return Snapshot(CLOUD_HYPERVISOR, parts)
    file = _opened(path, MEMORY)
    try:
        check_aligned(tuple((one.address, one.size) for one in ranges), "memory_ranges")
    except StreamError:
        file.close()
        raise
    whole, size = sum(one.size for one in ranges), file.size()
    if size < whole:
        problems.append(
            Truncated(
                f"{MEMORY} is shorter than the list of memory ranges",
                offset=size,
                section=MEMORY,
                expected=f"{whole} bytes",
                found=f"{size}",
            )
        )
    memory = tuple(sorted(ranges, key=lambda one: one.address))
    return Snapshot(CLOUD_HYPERVISOR, parts, memory, file, tuple(problems))


def _opened(folder: str, name: str) -> FileSource:
    # Never out of the folder: a link is refused.
    path = os.path.join(folder, name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        link = os.path.islink(path)
        reason = "it is a symbolic link" if link else error.strerror
        raise SourceError(
            f"cannot open '{path}': {reason}",
            hint="a snapshot's files are in its folder; give the folder that has them"
            if link
            else None,
        ) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SourceError(f"'{path}' is not a file")
    return FileSource(fd, path)


def _child(tree: object, *names: str) -> Any:
    found: Any = tree
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _state(node: object, where: str, limits: Limits) -> Any:
    # The state of a node: a text with JSON.
    text = _child(node, "snapshot_data", "state")
    return parse_json(text.encode(), where, limits) if isinstance(text, str) else None


def _vcpus(tree: object, where: str, limits: Limits) -> Iterator[Part]:
    nodes = _child(tree, "snapshots", _CPUS, "snapshots")
    if not isinstance(nodes, dict):
        raise SourceError(
            f"'{where}' has no {_CPUS} with vCPUs",
            hint="snapshots of Cloud Hypervisor from v37 on are read; this may be another "
            "program's, or an older one's",
        )
    for name, node in nodes.items():
        place = f"{where}: vCPU {name[:20]}"
        state = _state(node, place, limits)
        if not name.isdecimal() or len(name) > 5 or not isinstance(state, dict):
            raise SourceError(f"{place} has no state")
        kvm = state.get("Kvm")
        if not isinstance(kvm, dict):
            kinds = ", ".join(str(kind)[:20] for kind in list(state)[:3])
            raise SourceError(f"{place} is not KVM's but of {kinds}", hint="only KVM is supported")
        try:
            yield from _vcpu(int(name), kvm, place)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)[:200]
            raise SourceError(f"{place} is not as Cloud Hypervisor writes it: {what}") from error


def _vcpu(index: int, kvm: Json, place: str) -> Iterator[Part]:
    for member, name in _BYTES.items():
        if kvm.get(member) is not None:
            yield part(name, index, _octets(kvm[member]), f"{place}, {member}")
    if isinstance(kvm.get("msrs"), list):
        pairs = [(int(one["index"]), int(one["data"])) for one in kvm["msrs"]]
        yield part("MSRS", index, layouts.pack_msrs(pairs), f"{place}, msrs")
    if isinstance(kvm.get("cpuid"), list):
        entries = [{key: int(value) for key, value in one.items()} for one in kvm["cpuid"]]
        yield part("CPUID2", index, layouts.pack_cpuid(entries), f"{place}, cpuid")
    xsave = kvm.get("xsave")
    if isinstance(xsave, dict):
        words = [*xsave["region"], *xsave.get("extra", ())]
        data = b"".join(int(word).to_bytes(4, "little") for word in words)
        yield part("XSAVE", index, data, f"{place}, xsave")
    lapic = kvm.get("lapic_state")
    if isinstance(lapic, dict):
        data = bytes(int(byte) & 0xFF for byte in lapic["regs"])
        yield part("LAPIC", index, data, f"{place}, lapic_state")


def _octets(found: Sequence[int]) -> bytes:
    if not isinstance(found, list):
        raise TypeError("a structure that is no array of bytes")
    return bytes(found)


def _ranges(tree: object, where: str, limits: Limits) -> Iterator[Range]:
    state = _state(_child(tree, "snapshots", _RAM), f"{where}: {_RAM}", limits)
    found = _child(state, "memory_ranges", "data")
    if not isinstance(found, list):
        return
    if len(found) > _MOST_RANGES:
        raise SourceError(f"'{where}' lists {len(found)} memory ranges, more than {_MOST_RANGES}")
    offset = 0
    for one in found:
        address, size = _child(one, "gpa"), _child(one, "length")
        if not isinstance(address, int) or not isinstance(size, int) or size < 0 or address < 0:
            raise SourceError(f"'{where}' has a memory range without address or length")
        yield Range(address, size, offset)
        offset += size
