"""Snapshots of other VMMs, built after their public format from a capture of QEMU."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import qemu_svm as svm
from qemu_svm.kvm import layouts
from qemu_svm.snapshots.document import document_parts
from qemu_svm.x86.cpuid import infer
from qemu_svm.x86.cpuid_entries import changed


def raw_parts(dump: svm.Dump) -> dict[str, bytes]:
    """KVM's structures of vCPU 0 of a capture, by name."""
    document = dump.inspect().to_json()
    return {one.name: one.data for one in document_parts(document, "") if one.vcpu == 0}


def main_memory(dump: svm.Dump) -> bytes:
    """The content of RAM from address 0 on."""
    first = dump.memory.layout.ranges[0]
    size = max(one.end for one in dump.memory.layout.ranges if one.end <= 1 << 30)
    assert first.start == 0
    return b"".join(
        piece.data if piece.data else bytes(piece.size) for piece in dump.memory.pieces(0, size)
    )


def cloud_hypervisor_vcpu(parts: Mapping[str, bytes]) -> dict[str, Any]:
    """``VcpuKvmState`` of v53.0, as ``serde_json`` writes it."""
    msrs = layouts.unpack_msrs(parts["MSRS"])
    nested = parts["NESTED_STATE"].ljust(128 + 2 * 4096, b"\0") if "NESTED_STATE" in parts else None
    return {
        "Kvm": {
            "cpuid": changed([], infer(0, 0, 0)),
            "msrs": [{"index": index, "data": data} for index, data in msrs.items()],
            "vcpu_events": list(parts["VCPU_EVENTS"]),
            "regs": list(parts["REGS"]),
            "sregs": list(parts["SREGS"]),
            "fpu": {"fpr": [[0] * 16] * 8, "fcw": 0x37F, "mxcsr": 0x1F80},
            "lapic_state": {"regs": [-1, *[0] * 1023]},
            "xsave": {"region": [0x37F, *[0] * 1023]},
            "xcrs": list(layouts.XCRS.pack({"nr_xcrs": 1, "xcrs": [0, 1, *[0] * 30]})),
            "mp_state": list(parts["MP_STATE"]),
            "tsc_khz": 2_600_000,
            "nested_state": None if nested is None else list(nested),
            "hyperv_synic": False,
        }
    }


def leaf(state: Any) -> dict[str, Any]:
    """A node of the tree with a state."""
    return {"snapshots": {}, "snapshot_data": {"state": json.dumps(state)}}


def cloud_hypervisor_tree(vcpus: Mapping[str, Any], ranges: list[dict[str, int]]) -> dict[str, Any]:
    """The content of ``state.json``."""
    cpus = {name: leaf(state) for name, state in vcpus.items()}
    memory = {"memory_ranges": {"data": ranges}, "guest_ram_mappings": [], "boot_ram": 0}
    children = {
        "cpu-manager": {"snapshots": cpus, "snapshot_data": None},
        "device-manager": {"snapshots": {}, "snapshot_data": None},
        "memory-manager": leaf(memory),
    }
    return {"snapshots": children, "snapshot_data": {"state": "{}"}}


def write_cloud_hypervisor(folder: Path, dump: svm.Dump, **changes: Any) -> Path:
    """Write a snapshot of a capture's vCPU 0 and of its memory, in two ranges."""
    folder.mkdir()
    memory = main_memory(dump)
    half = len(memory) // 2 & ~0xFFF
    ranges = [
        # The order of the list is that of the file, not that of the addresses.
        {"gpa": half, "length": len(memory) - half},
        {"gpa": 0, "length": half},
    ]
    (folder / "memory-ranges").write_bytes(memory[half:] + memory[:half])
    vcpu = cloud_hypervisor_vcpu(raw_parts(dump))
    vcpu["Kvm"] |= changes
    tree = cloud_hypervisor_tree({"0": vcpu}, ranges)
    (folder / "state.json").write_text(json.dumps(tree))
    return folder


def _counted(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


def _list(entries: list[bytes]) -> bytes:
    head = _counted(len(entries).to_bytes(4, "little") + bytes(4))
    return head + len(entries).to_bytes(8, "little") + b"".join(map(_counted, entries))


def firecracker_state(
    parts: Mapping[str, bytes], version: str, regions: list[tuple[int, int]], vcpus: int = 1
) -> bytes:
    """A state file of Firecracker v1.10, v1.12 or v1.14, as ``bincode`` writes it."""
    mib = sum(size for _, size in regions) >> 20
    info = mib.to_bytes(8, "little") + b"\0" + bytes(4)  # smt, cpu_template
    info += _counted(b"/path/vmlinux") + b"\0" + b"\1" + _counted(b"console=ttyS0") + bytes(4)
    rows, offset = [], 0
    for address, size in regions:
        row = address.to_bytes(8, "little") + size.to_bytes(8, "little")
        row += {"4.0.0": offset.to_bytes(8, "little"), "6.0.0": b""}.get(
            version, bytes(4) + _counted(b"\1" * 3)
        )
        rows.append(row)
        offset += size
    memory = len(rows).to_bytes(8, "little") + b"".join(rows)
    msrs = [
        layouts.MSR_ENTRY.pack({"index": index, "data": data})
        for index, data in layouts.unpack_msrs(parts["MSRS"]).items()
    ]
    half = len(msrs) // 2
    cpuid = [layouts.CPUID_ENTRY.pack(entry) for entry in changed([], infer(0, 0, 0))]
    xcrs = layouts.XCRS.pack({"nr_xcrs": 1, "xcrs": [0, 1, *[0] * 30]})
    xsave = bytes(24) + (0x1F80).to_bytes(4, "little") + bytes(4068)
    vcpu = _list(cpuid) + (2).to_bytes(8, "little") + _list(msrs[:half]) + _list(msrs[half:])
    vcpu += _counted(parts["DEBUGREGS"]) + _counted(bytes(1024))
    vcpu += b"".join(_counted(parts[name]) for name in ("MP_STATE", "REGS", "SREGS"))
    vcpu += _counted(parts["VCPU_EVENTS"]) + _counted(xcrs)
    if version == "4.0.0":
        vcpu += _counted(xsave)
    else:
        vcpu += _counted(bytes(8) + xsave) + bytes(8)
    vcpu += b"\1" + (2_600_000).to_bytes(4, "little")
    devices = bytes(8) * 6
    state = info + memory + b"".join(_counted(bytes(size)) for size in (112, 48, 520, 520, 520))
    state += vcpus.to_bytes(8, "little") + vcpu * vcpus + devices
    magic = (0x0710_1984_8664_0000).to_bytes(8, "little")
    return magic + _counted(version.encode()) + state + bytes(8)


def firecracker_columns(vcpus: Sequence[Mapping[str, bytes]], version: str = "11.0.0") -> bytes:
    """A state file of Firecracker v1.15 or later, as ``bitcode`` writes it."""
    count = len(vcpus)
    magic = (0x0710_1984_8664_0000).to_bytes(8, "little")
    made = b"\0" + magic + bytes([len(version)]) + version.encode()
    made += b"\x06\x80\0"  # memory in MiB, smt
    made += lengths([count])
    made += _fams([_entries(one["CPUID2"], 40) for one in vcpus], 8)
    msrs = [_entries(one["MSRS"], 16) for one in vcpus]
    halves = [half for one in msrs for half in (one[: len(one) // 2], one[len(one) // 2 :])]
    made += lengths([2] * count) + _fams(halves, 8)
    for name in ("DEBUGREGS", "LAPIC", "MP_STATE", "REGS", "SREGS", "VCPU_EVENTS", "XCRS"):
        made += _blobs([one[name] for one in vcpus])
    made += _blobs([bytes(8) + one["XSAVE"] for one in vcpus]) + lengths([0] * count)
    return made + packed(b"\1" * count) + bytes(40)


def _entries(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(8, len(data), size)]


def _fams(lists: Sequence[Sequence[bytes]], head: int) -> bytes:
    heads = [len(one).to_bytes(4, "little").ljust(head, b"\0") for one in lists]
    return (
        _blobs(heads) + lengths([len(one) for one in lists])
        + _blobs([entry for one in lists for entry in one])
    )  # fmt: skip


def _blobs(blobs: Sequence[bytes]) -> bytes:
    return lengths([len(one) for one in blobs]) + packed(b"".join(blobs))


def lengths(values: Sequence[int]) -> bytes:
    """A column of lengths."""
    return packed(bytes(min(one, 255) for one in values)) + _wide(
        [one for one in values if one >= 255]
    )


def _states(most: int) -> int:
    return next((one for one in (2, 3, 4, 6, 16) if most < one), 256)


def packed(data: bytes) -> bytes:
    """A column of bytes."""
    if len(data) <= 2:
        return data
    plain, least = _states(max(data)), min(data)
    states = plain
    if len(data) > 5 and _states(max(data) - least) < plain:
        states = _states(max(data) - least)
        data = bytes(one - least for one in data)
    number = (256, 16, 6, 4, 3, 2).index(states)
    head = bytes([2 * number]) if states == plain else bytes([2 * number - 1, least])
    if states == 256:
        return head + data
    each = {16: 2, 6: 3, 4: 4, 3: 5, 2: 8}[states]
    groups = [data[at : at + each] for at in range(0, len(data), each)]
    return head + bytes(sum(one * states**at for at, one in enumerate(group)) for group in groups)


def _wide(values: Sequence[int]) -> bytes:
    if not values:
        return b""
    least, sizes = min(values), (8, 4, 2, 1)
    plain = min(size for size in sizes if max(values) < 1 << 8 * size)
    size = plain
    if len(values) > 5:
        size = min(one for one in sizes if max(values) - least < 1 << 8 * one)
    head = bytes([2 * sizes.index(size)])
    if size < plain:
        head = bytes([2 * sizes.index(size) - 1]) + least.to_bytes(8, "little")
        values = [one - least for one in values]
    if size == 1:
        return head + packed(bytes(values))
    return head + b"".join(one.to_bytes(size, "little") for one in values)
