"""Where the parts of a vCPU are in the memory of one kernel.

The map for the reader (:mod:`qemu_svm.kvm.inside`), and the members of ``struct vcpu_svm`` that
are shown.  Members that a version lacks are absent.

Source: Linux ``arch/x86/kvm/svm/svm.h``, ``arch/x86/include/asm/kvm_host.h``, 5.10 to 7.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qemu_svm.errors import EnvironmentFault
from qemu_svm.inside.types import Place, Types, find, names
from qemu_svm.nested.layout import CONTROL, SAVE, SAVE_OFFSET

Json = dict[str, Any]

_GAP = 64  # bytes that are read rather than left out
SVM = "vcpu_svm"

_ARCH = (
    *("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base", "dr6", "dr7", "pat", "mp_state"),
    *("regs_avail", "regs_dirty", "smi_pending", "nmi_pending", "nmi_injected"),
    *("pdptrs_from_userspace", "l1_tsc_offset", "tsc_offset", "cr0_guest_owned_bits"),
)
_NESTED = ("vmcb12_gpa", "last_vmcb12_gpa", "initialized", "force_msr_bitmap_recalc")
_ELSEWHERE = {
    "nested.run_pending": ("nested.nested_run_pending", "vcpu.arch.nested_run_pending"),
    # Up to 5.11, with other names.
    "nested.vmcb12_gpa": ("nested.vmcb12_gpa", "nested.vmcb"),
    "nested.vm_hsave_pa": ("nested.hsave_msr",),
    "nested.vm_cr": ("nested.vm_cr_msr",),
    "hflags": ("vcpu.arch.hflags",),
    "guest_gif": ("guest_gif",),
    "requests": ("vcpu.requests",),
    "mode": ("vcpu.mode",),
    "cpu": ("vcpu.cpu",),
    "exits": ("vcpu.stat.exits",),
}
"""Members by the name that they have here, with their paths in ``struct vcpu_svm``."""

REGISTERS = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
    "rip",
)
"""``vcpu->arch.regs`` in their order (``enum kvm_reg``); RIP is a member of its own since 7.2."""

_SEGMENTS = frozenset({"es", "cs", "ss", "ds", "gdtr", "idtr"})
_SEGMENT_PARTS = ("selector", "base", "limit", "attrib")
_RENAMED = {"misc_ctl": "nested_ctl", "misc_ctl2": "virt_ext"}  # since 7.2
_NOT_SHOWN = frozenset({"exit_code_hi", "hv_enlightenments", "reserved_sw", "clean"})
_PAGES = {
    "vmcb01": "vmcb01.ptr",
    "vmcb02": "nested.vmcb02.ptr",
    "hsave": "nested.hsave",
}
ADDRESSES = (
    *("iopm_base_pa", "msrpm_base_pa", "avic_vapic_bar", "ghcb_gpa", "nested_cr3"),
    *("avic_backing_page", "avic_logical_id", "avic_physical_id", "vmsa_pa"),
)
"""Control fields of KVM's own VMCBs that have addresses of the host."""
_CR3 = SAVE_OFFSET + SAVE.member("cr3").offset
"""Without nested paging, the save area of KVM's own VMCBs has a table of the host here."""
_MMU = ("root_mmu", "guest_mmu", "nested_mmu")
_ANCHORS = {
    "task": ("task_struct", ("tasks", "pid", "files")),
    "files": ("files_struct", ("fdt",)),
    "fdtable": ("fdtable", ("max_fds", "fd")),
    "file": ("file", ("private_data",)),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of ``struct vcpu_svm`` of one kernel.

    :param places: numbers by name: ``nested.save.cr3``, ``arch.rip``.
    :param segments: segments and tables by name: the places of their parts.
    :param starts: start of each range that is read, with its offset in what is read.
    :param map: for the reader.
    """

    places: Mapping[str, Place]
    segments: Mapping[str, tuple[Place, ...]]
    starts: tuple[tuple[int, int, int], ...]
    map: Json

    @property
    def addresses(self) -> bool:
        """Whether addresses of the host are shown."""
        return bool(self.map.get("addresses"))

    def with_addresses(self) -> Layout:
        """Return the layout for a reader that shows addresses of the host."""
        return replace(self, map=self.map | {"addresses": True})

    def position(self, place: Place) -> int:
        """Return the offset of a member in what is read."""
        for start, size, before in self.starts:
            if start <= place.offset < start + size:
                return before + place.offset - start
        raise KeyError(place)

    def number(self, data: bytes | bytearray, place: Place) -> int:
        """Return the number that is at a place, from what was read."""
        begin = self.position(place)
        return place.value(data[begin : begin + place.size], place.offset)


def read_layout(types: Types, base: Types | None = None) -> Layout:
    """Find the members of a vCPU.

    :param types: those of kvm-amd.
    :param base: those of the kernel itself, if ``types`` does not have them.
    :raises EnvironmentFault: the kernel's types lack something that is needed.
    """
    if types.structure(SVM) is None:
        raise EnvironmentFault(f"the types of kvm_amd do not have struct {SVM}")
    places, segments = _places(types)
    pages = {
        name: place.offset for name, path in _PAGES.items() if (place := find(types, SVM, path))
    }
    pointers: Json = {}
    mmu = find(types, SVM, "vcpu.arch.mmu")
    if mmu is not None:
        members = {
            name: place.offset for name in _MMU if (place := find(types, SVM, f"vcpu.arch.{name}"))
        }
        pointers["mmu"] = {"at": mmu.offset, "members": members}
    current = find(types, SVM, "vmcb")
    identity, owner = find(types, SVM, "vcpu.vcpu_id"), find(types, SVM, "vcpu.kvm")
    if current is None or identity is None or owner is None:
        raise EnvironmentFault(f"struct {SVM} lacks vmcb, vcpu.vcpu_id or vcpu.kvm")
    if "vmcb01" in pages:
        pointers["current"] = {"at": current.offset, "pages": ["vmcb01", "vmcb02"]}
    else:
        pages["vmcb01"] = current.offset  # the only one up to 5.12
    everything = [*places.values(), *(part for parts in segments.values() for part in parts)]
    ranges = _ranges(everything)
    starts, before = [], 0
    for start, size in ranges:
        starts.append((start, size, before))
        before += size
    layout = {
        **_anchors(base or types),
        "vm": owner.offset,
        "id": [identity.offset, identity.size],
        "ranges": [list(one) for one in ranges],
        "pages": pages,
        "hidden": [[CONTROL.member(name).offset, 8] for name in ADDRESSES],
        "shadowed": [CONTROL.member("nested_ctl").offset, [[_CR3, 8]]],
        "pointers": pointers,
    }
    return Layout(places, segments, tuple(starts), layout)


def _anchors(types: Types) -> Json:
    found: Json = {}
    for key, (structure, members) in _ANCHORS.items():
        found[key] = {}
        for name in members:
            place = find(types, structure, name)
            if place is None:
                raise EnvironmentFault(f"the kernel's types lack {structure}.{name}")
            found[key][name] = place.offset
    return found


def _places(types: Types) -> tuple[dict[str, Place], dict[str, tuple[Place, ...]]]:
    paths: dict[str, tuple[str, ...]] = {f"arch.{name}": (f"vcpu.arch.{name}",) for name in _ARCH}
    paths |= {f"nested.{name}": (f"nested.{name}",) for name in _NESTED}
    paths |= _ELSEWHERE
    places: dict[str, Place] = {}
    for name, several in paths.items():
        found = next((one for path in several if (one := find(types, SVM, path))), None)
        if found is not None:
            places[name] = found
    places |= _array(types, "arch", "vcpu.arch.regs", REGISTERS)
    places |= _array(types, "arch", "vcpu.arch.db", ("dr0", "dr1", "dr2", "dr3"))
    rip = find(types, SVM, "vcpu.arch.rip")
    if rip is not None:
        places["arch.rip"] = rip
    segments: dict[str, tuple[Place, ...]] = {}
    for cache in ("ctl", "save"):
        for name in names(types, SVM, f"nested.{cache}"):
            path = f"nested.{cache}.{name}"
            place = find(types, SVM, path)
            if place is None or name in _NOT_SHOWN or name.startswith("reserved"):
                continue
            if name in _SEGMENTS:
                parts = [find(types, SVM, f"{path}.{part}") for part in _SEGMENT_PARTS]
                segments[path] = tuple(part for part in parts if part is not None)
            elif name == "exit_code" and (high := find(types, SVM, f"{path}_hi")):
                places[path] = Place(place.offset, high.offset + high.size - place.offset)
            else:
                places[f"nested.{cache}.{_RENAMED.get(name, name)}"] = place
    return places, segments


def _array(types: Types, prefix: str, path: str, elements: Iterable[str]) -> dict[str, Place]:
    whole = find(types, SVM, path)
    if whole is None:
        return {}
    return {
        f"{prefix}.{name}": Place(whole.offset + 8 * index, 8)
        for index, name in enumerate(elements)
        if 8 * index < whole.size
    }


def _ranges(places: Iterable[Place]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for place in sorted(places, key=lambda one: one.offset):
        end = place.offset + place.size
        if found and place.offset <= found[-1][0] + found[-1][1] + _GAP:
            start, size = found[-1]
            found[-1] = start, max(start + size, end) - start
        else:
            start = place.offset & ~7
            found.append((start, end - start))
    return found
