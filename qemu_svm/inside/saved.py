"""What KVM would answer now, from what stands in its memory; and what a stream has instead.

Both by the names of :mod:`qemu_svm.model.observed`: ``nested.flags``, ``ctl.asid``, ``l1.cr3``,
``sregs.cr3``, ``regs.rip``, ``msr.star``.  While the vCPU is in the guest, its registers are
those of the last exit.

Source: Linux ``arch/x86/kvm/svm/nested.c`` (``svm_get_nested_state``), ``svm.c``
(``svm_get_segment``), 5.10 to 7.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qemu_svm.inside.layout import REGISTERS
from qemu_svm.inside.view import Inside
from qemu_svm.machine import Vcpu
from qemu_svm.model.area import RESET, Area, Content
from qemu_svm.model.observed import ARCH_MSRS, Observed, comparable, flat
from qemu_svm.model.saved import Saved, from_vcpu
from qemu_svm.nested import NestedState, bits, layout
from qemu_svm.x86.segments import Segment

_ARCH = (
    *(*REGISTERS, "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"),
    *(*(f"dr{number}" for number in (0, 1, 2, 3, 6, 7)), "pat"),
)
_IN_NESTED = ("vm_hsave_pa", "vm_cr")
_SHADOW = 1


@dataclass(frozen=True, slots=True)
class _Seen:
    # A vCPU in a kernel's memory as a qemu_svm.model.observed.State.
    areas: Mapping[str, Area]
    nested: NestedState
    guest_mode: bool
    smm: bool
    shadow: int


def would_save(seen: Inside) -> Observed:
    """Return what the ioctls would answer about a vCPU.

    :param seen: the vCPU in the kernel's memory.
    """
    split = "current" in seen
    guest_mode = bool(seen.get("guest_mode"))
    areas = {
        "arch": _area(seen, "arch.", _ARCH) | _area(seen, "nested.", _IN_NESTED),
        "vmcb01": _area(seen, "vmcb01.save."),
        "vmcb02": _area(seen, "vmcb02.save."),
        "hsave": _area(seen, "hsave.save."),
        "ctl_cache": _area(seen, "nested.ctl."),
    }
    current = "vmcb02" if split and guest_mode else "vmcb01"
    available = seen.get("arch.regs_avail", -1)
    for number, name in enumerate(REGISTERS):
        if not available >> number & 1 and f"{current}.save.{name}" in seen:
            areas["arch"][name] = seen[f"{current}.save.{name}"]
    made = {name: _made(values) for name, values in areas.items()}
    shadow = seen.get(f"{current}.control.int_state", 0) & _SHADOW
    header = _header(seen, guest_mode=guest_mode)
    found = flat(_Seen(made, header, guest_mode, bool(seen.get("smm")), shadow), split=split)
    for name in ARCH_MSRS:
        if name not in areas["arch"]:  # this kernel keeps it elsewhere
            del found[f"msr.{name}"]
    return found


def _header(seen: Inside, *, guest_mode: bool) -> NestedState:
    flags = bits.GUEST_MODE if guest_mode else 0
    flags |= bits.RUN_PENDING if seen.get("nested.run_pending") else 0
    flags |= bits.GIF_SET if seen.get("gif") else 0
    size = layout.UAPI_HEADER_SIZE + (layout.VMCB_SIZE if guest_mode else 0)
    address = seen.get("nested.vmcb12_gpa", 0) if guest_mode else 0
    return NestedState(flags, layout.FORMAT_SVM, size, address)


def _area(seen: Inside, prefix: str, names: tuple[str, ...] = ()) -> Inside:
    # The members of an area; with names, those only.
    found = {one.removeprefix(prefix): seen[one] for one in seen if one.startswith(prefix)}
    return {name: found[name] for name in names if name in found} if names else found


def _made(values: Inside) -> Area:
    area = Area("kernel memory")
    for name, value in values.items():
        area.set(name, _content(value), RESET)
    return area


def _content(value: int | list[int]) -> Content:
    if isinstance(value, int):
        return value
    if len(value) == 4:
        selector, base, limit, attrib = value
        return Segment(selector, base, limit, attrib)
    base, limit = value
    return Segment(0, base, limit, 0)


def saved_in(vcpu: Vcpu) -> Observed:
    """Return the same of a vCPU of a stream."""
    saved = from_vcpu(vcpu)
    header = saved.nested
    areas = {
        "arch": _stream_arch(saved), "vmcb01": saved.l1(), "vmcb02": saved.sregs,
        "hsave": saved.l1(), "ctl_cache": saved.control(),
    }  # fmt: skip
    if not saved.guest_mode:
        areas["vmcb01"] = saved.sregs
    shared = {name: saved.msrs[name] for name in saved.msrs if name not in (*ARCH_MSRS, "efer")}
    state = _Seen(areas, header, saved.guest_mode, bool(saved.smm), 0)
    found = flat(state, split=True)
    found |= {f"msr.{name}": value for name, value in shared.items()}
    found |= {f"sregs.{name}": saved.sregs.segment(name).as_list()
              for name in ("fs", "gs", "tr", "ldtr")}  # fmt: skip
    found["regs.rflags"] = saved.regs["rflags"]
    del found["shadow"], found["msr.vm_cr"]
    return found


def _stream_arch(saved: Saved) -> Area:
    area = Area("stream")
    for values in (saved.regs, saved.debugregs):
        for name, value in values.items():
            area.set(name, value, RESET)
    for name in ("cr0", "cr2", "cr3", "cr4", "efer"):
        area.set(name, saved.sregs.get(name), RESET)
    for name in ARCH_MSRS:
        area.set(name, saved.msrs.get(name, 0), RESET)
    return area


def apart(a: Observed, b: Observed) -> Iterator[str]:
    """Return the names that both have, with values that differ."""
    for name, value in a.items():
        if name in b and comparable(name, value) != comparable(name, b[name]):
            yield name
